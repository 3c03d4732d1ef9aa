"""Runtime: programs and what stands between them and the user's objects."""

from stepgraph.runtime.averaged_model import UpdateAverage
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
from stepgraph.runtime.step_part import PartOfStep

__all__ = [
    "Buffers",
    "CudaDevice",
    "GraphDevice",
    "Graphed",
    "NeedsEager",
    "PartOfStep",
    "PartialRehearsal",
    "Plan",
    "Program",
    "Rehearsal",
    "Snapshot",
    "Spans",
    "UpdateAverage",
    "WholeRehearsal",
    "autocast_devices",
    "restored_rng",
    "results_of",
    "watching",
]
