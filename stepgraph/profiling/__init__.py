"""Profiling: how long the nodes of a step take, what they move, and how much is alive at once."""

from stepgraph.profiling.measure import profile
from stepgraph.profiling.memory import Peak, live_bytes, peak
from stepgraph.profiling.result import NodeProfile, Profile, Timing
from stepgraph.profiling.trace import Span
from stepgraph.profiling.traffic import bytes_moved

__all__ = [
    "NodeProfile",
    "Peak",
    "Profile",
    "Span",
    "Timing",
    "bytes_moved",
    "live_bytes",
    "peak",
    "profile",
]
