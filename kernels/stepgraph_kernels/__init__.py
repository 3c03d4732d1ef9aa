"""Fused optimizer kernels, one folder each. Depends on torch and triton, never on stepgraph."""

from stepgraph_kernels.catalogue import FAMILIES, VARIANTS
from stepgraph_kernels.fuse import Fusion, fuse
from stepgraph_kernels.lamb import Lamb
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.lion import Lion
from stepgraph_kernels.spec import Family, Rule, Target, Tuning

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "Family",
    "Fusion",
    "Lamb",
    "Lion",
    "MultiTensorUpdate",
    "Rule",
    "Target",
    "Tuning",
    "fuse",
]
