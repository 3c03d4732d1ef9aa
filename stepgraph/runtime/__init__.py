"""Runtime: programs, and what verifies them beside the user's objects.

Files, in reading order:

    program.py     what a captured step becomes
    spans.py       its nodes as spans of a profile
    snapshot.py    copies of everything a step may write
    rehearsal.py   runs a new program once and compares it with the eager call
    cuda_graph.py  records and replays the work of a device
"""

from stepgraph.runtime.cuda_graph import Buffers, CudaDevice, GraphDevice, Graphed, Plan
from stepgraph.runtime.program import NeedsEager, Program, autocast_devices
from stepgraph.runtime.rehearsal import (
    PartialRehearsal,
    Rehearsal,
    WholeRehearsal,
    restored_rng,
    results_of,
    watching,
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
    "autocast_devices",
    "restored_rng",
    "results_of",
    "watching",
]
