"""The step graph: what a captured training step is, and what its nodes read and write.

Files, in reading order:

    signature.py      slots and their roles: what an input is
    schema.py         what an operator reads, writes and returns, from its schema
    effect_nodes.py   nodes that call the operator of an effect
    memory_access.py  which memories a node refers to, reads and writes
    resources.py      names for everything whose order of reads and writes matters
    cut.py            which nodes of a flat graph are one node of a step graph
    region.py         the typed graph, and back to the flat one
    step_graph.py     `StepGraph`; `partition` and `flatten`
    views/            dependencies, verification, text, Graphviz
    build.py          flat graphs from a few lines of Python, for tests
"""

from stepgraph.effects import Kind
from stepgraph.ir.effect_nodes import argument as marker_argument
from stepgraph.ir.effect_nodes import (
    is_update,
    marker_kind,
    marker_name,
    node_effect,
    stored_gradients,
)
from stepgraph.ir.memory_access import (
    all_storages,
    draws_random,
    storages_of,
    writes_of,
    written_arguments,
)
from stepgraph.ir.resources import OPAQUE, Access, accesses, slot_name, updates
from stepgraph.ir.signature import Role, Slot
from stepgraph.ir.step_graph import Remark, StepGraph, flatten, partition
from stepgraph.ir.views.dependencies import dependency_graph, flat_dependencies
from stepgraph.ir.views.text import Line, lines, readable
from stepgraph.ir.views.verify import Meaning, meaning

__all__ = [
    "OPAQUE",
    "Access",
    "Kind",
    "Line",
    "Meaning",
    "Remark",
    "Role",
    "Slot",
    "StepGraph",
    "accesses",
    "all_storages",
    "dependency_graph",
    "draws_random",
    "flat_dependencies",
    "flatten",
    "is_update",
    "lines",
    "marker_argument",
    "marker_kind",
    "marker_name",
    "meaning",
    "node_effect",
    "partition",
    "readable",
    "slot_name",
    "storages_of",
    "stored_gradients",
    "updates",
    "writes_of",
    "written_arguments",
]
