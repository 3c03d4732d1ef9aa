"""Analyses: they read a step graph and never write it."""

from stepgraph.analysis.flops import flops, flops_of

__all__ = ["flops", "flops_of"]
