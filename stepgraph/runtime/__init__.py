"""Runtime: programs and what stands between them and the user's objects."""

from stepgraph.runtime.program import Program, autocast_devices
from stepgraph.runtime.rehearsal import Rehearsal, rehearse, watching

__all__ = ["Program", "Rehearsal", "autocast_devices", "rehearse", "watching"]
