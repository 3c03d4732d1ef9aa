"""Fused optimizer kernels, one folder each. Depends on torch and triton, never on stepgraph."""

from stepgraph_kernels.adam import ADAM
from stepgraph_kernels.catalogue import FAMILIES, VARIANTS
from stepgraph_kernels.fuse import Fusion, fuse
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.sgd import SGD
from stepgraph_kernels.spec import Family, Rule, Target, Tuning

__all__ = [
    "ADAM",
    "FAMILIES",
    "SGD",
    "VARIANTS",
    "Family",
    "Fusion",
    "MultiTensorUpdate",
    "Rule",
    "Target",
    "Tuning",
    "fuse",
]
