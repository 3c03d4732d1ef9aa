"""Fused optimizer kernels, one folder each. Depends on torch and triton, never on stepgraph."""

from stepgraph_kernels.adafactor import AdafactorUpdate
from stepgraph_kernels.catalogue import FAMILIES, VARIANTS, update_class
from stepgraph_kernels.fuse import Fusion, fuse
from stepgraph_kernels.lamb import Lamb
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.lion import Lion
from stepgraph_kernels.muon import MuonUpdate
from stepgraph_kernels.spec import Family, Rule, Target, Tuning

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "AdafactorUpdate",
    "Family",
    "Fusion",
    "Lamb",
    "Lion",
    "MultiTensorUpdate",
    "MuonUpdate",
    "Rule",
    "Target",
    "Tuning",
    "fuse",
    "update_class",
]
