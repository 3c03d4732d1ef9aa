"""Graph modules whose Python is generated only on first use."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule


def graph_module(root: Any, graph: Graph, class_name: str = "GraphModule") -> GraphModule:
    """Return a graph module without generating its code, which takes longer than building it.

    Args:
        root: A module, or a dict of attributes, that the graph refers to.
        graph: The graph; not copied.
        class_name: The name of the module when it is printed.
    """
    return _LazyGraphModule(root, graph, class_name)
