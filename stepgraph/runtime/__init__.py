"""Runtime: programs and what stands between them and the user's objects."""

from stepgraph.runtime.program import NeedsEager, Program, autocast_devices
from stepgraph.runtime.rehearsal import (
    PartialRehearsal,
    Rehearsal,
    WholeRehearsal,
    results_of,
    watching,
)

__all__ = [
    "NeedsEager",
    "PartialRehearsal",
    "Program",
    "Rehearsal",
    "WholeRehearsal",
    "autocast_devices",
    "results_of",
    "watching",
]
