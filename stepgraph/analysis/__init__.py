"""Analyses of a step graph: they read it and never change it.

Files, in reading order:

    sizes.py      sizes of fake tensors as numbers
    traffic.py    bytes that nodes read and write
    flops.py      floating-point operations of nodes
    raising.py    nodes that may raise an exception depending on values
    ownership.py  values that may become a gradient without a copy
    memory.py     bytes that are alive while each node runs
    work.py       these numbers for a whole step
"""

from stepgraph.analysis.flops import flops, flops_of
from stepgraph.analysis.memory import Memory, Peak, live_bytes, memory_of, peak
from stepgraph.analysis.ownership import keeps_value, stealable
from stepgraph.analysis.raising import may_raise
from stepgraph.analysis.traffic import bytes_of, size_of, sizes_of
from stepgraph.analysis.work import Work, launches, work

__all__ = [
    "Memory",
    "Peak",
    "Work",
    "bytes_of",
    "flops",
    "flops_of",
    "keeps_value",
    "launches",
    "live_bytes",
    "may_raise",
    "memory_of",
    "peak",
    "size_of",
    "sizes_of",
    "stealable",
    "work",
]
