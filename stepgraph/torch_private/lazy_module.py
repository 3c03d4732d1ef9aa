"""Graph modules whose Python is written only when somebody asks for it."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule


def graph_module(root: Any, graph: Graph, class_name: str = "GraphModule") -> GraphModule:
    """Return a graph module without generating its code, which takes longer than building it.

    Args:
        root: A module, or a dict of attributes, that the graph refers to.
        graph: The graph. The module holds it as it is.
        class_name: What the module is called when it is printed.
    """
    return _LazyGraphModule(root, graph, class_name)
