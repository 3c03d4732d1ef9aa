"""Analyses: they read a step graph and never write it."""

from stepgraph.analysis.flops import flops, flops_of
from stepgraph.analysis.traffic import bytes_of, size_of, sizes_of
from stepgraph.analysis.work import Work, launches, work

__all__ = ["Work", "bytes_of", "flops", "flops_of", "launches", "size_of", "sizes_of", "work"]
