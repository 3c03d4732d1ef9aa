"""Runtime: programs, their rehearsals, and CUDA graphs.

Files, in reading order:

    program.py     the callable that performs a captured step
    spans.py       the nodes of a program as spans in a profile
    snapshot.py    copies of everything that a step may write
    rehearsal.py   runs a new program once and compares it with the eager call
    cuda_graph.py  records and replays the work of a device
"""

from stepgraph.runtime.cuda_graph import Buffers, CudaDevice, GraphDevice, Graphed, Plan
from stepgraph.runtime.program import NeedsEager, Program, autocast_devices
from stepgraph.runtime.rehearsal import (
    PartialRehearsal,
    Rehearsal,
    WholeRehearsal,
    at_entry_of,
    restored_rng,
    results_of,
)
from stepgraph.runtime.snapshot import Snapshot
from stepgraph.runtime.spans import Spans

__all__ = [
    "Buffers",
    "CudaDevice",
    "GraphDevice",
    "Graphed",
    "NeedsEager",
    "PartialRehearsal",
    "Plan",
    "Program",
    "Rehearsal",
    "Snapshot",
    "Spans",
    "WholeRehearsal",
    "at_entry_of",
    "autocast_devices",
    "restored_rng",
    "results_of",
]
