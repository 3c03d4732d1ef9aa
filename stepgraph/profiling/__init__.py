"""Measure a step: duration, launches, bytes and operations of each node and operator.

Files, in reading order:

    measurements.py  the data: times, one node, one operator
    result.py        `Profile`: all measurements of a step; prints itself
    measure.py       `profile()`: run the step in several ways, in turns, and measure it
    comparison.py    `compare()`: whole calls, eagerly and compiled by each backend
    clock.py         clocks for marks inside of a call; duration of a whole call
    calls.py         number of operator calls
    traffic.py       bytes read and written by each node
    bandwidth.py     copy bandwidth of this machine
    trace.py         spans, and the trace file for Perfetto
    text.py          rows and columns of the printed tables
"""

from stepgraph.profiling.comparison import Comparison, Way, compare
from stepgraph.profiling.measure import profile
from stepgraph.profiling.measurements import NodeProfile, OperatorProfile, Timing
from stepgraph.profiling.result import Profile
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
