"""The step graph: the nodes of a captured training step, and what they read and write.

Files, in reading order:

    signature.py      slots: the inputs of a step and their roles
    schema.py         what an operator reads, writes and returns, from its schema
    effect_nodes.py   nodes that call the operator of an effect
    memory_access.py  the storages that a node refers to, reads and writes
    resources.py      names for everything whose order of reads and writes matters
    cut.py            grouping of the nodes of a flat graph into nodes of a step graph
    region.py         conversion between the flat and the typed graph
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
