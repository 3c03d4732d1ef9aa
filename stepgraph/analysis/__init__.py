"""Analyses: they read a step graph and never write it."""

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
