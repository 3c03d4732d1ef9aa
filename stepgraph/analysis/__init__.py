"""Analyses: they read a step graph and never write it."""

from stepgraph.analysis.flops import flops

__all__ = ["flops"]
