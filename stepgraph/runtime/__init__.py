"""Runtime: programs and what stands between them and the user's objects."""

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
