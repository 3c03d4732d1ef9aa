"""Profiling: how long the nodes of a step take, and what they move."""

from stepgraph.profiling.comparison import Comparison, Way, compare
from stepgraph.profiling.measure import profile
from stepgraph.profiling.result import NodeProfile, OperatorProfile, Profile, Timing
from stepgraph.profiling.trace import Span
from stepgraph.profiling.traffic import bytes_moved

__all__ = [
    "Comparison",
    "NodeProfile",
    "OperatorProfile",
    "Profile",
    "Span",
    "Timing",
    "Way",
    "bytes_moved",
    "compare",
    "profile",
]
