"""The step graph: what a captured training step is, and what its nodes read and write."""

from stepgraph.ir.dependencies import dependency_graph
from stepgraph.ir.effects import all_storages, draws_random, storages_of, writes_of
from stepgraph.ir.kind import Kind
from stepgraph.ir.signature import Role, Slot
from stepgraph.ir.step_graph import OPAQUE, StepGraph

__all__ = [
    "OPAQUE",
    "Kind",
    "Role",
    "Slot",
    "StepGraph",
    "all_storages",
    "dependency_graph",
    "draws_random",
    "storages_of",
    "writes_of",
]
