"""flatten: the inverse of partition."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch.fx import Graph, GraphModule, Node

from stepgraph.torch_private import graph_module

if TYPE_CHECKING:
    from stepgraph.ir.step_graph import StepGraph


def flatten(step: StepGraph) -> GraphModule:
    """Return `step` as one flat graph: regions dissolved, program order and metadata kept.

    Every node that belongs to a typed node has its name in `meta["stepgraph.node"]`.
    """
    flattener = _Flattener(step)
    for node in step.nodes:
        flattener.add(node)
    module = graph_module(flattener.attributes, flattener.graph)
    module.meta.update(step.graph_module.meta)
    return module


class _Flattener:
    def __init__(self, step: StepGraph) -> None:
        self.step = step
        self.graph = Graph()
        self.attributes: dict[str, Any] = {}
        self.values: dict[Node, Any] = {}

    def add(self, node: Node) -> None:
        """Copy a top-level node, or what it stands for."""
        region = self.step.region(node)
        source = node.args[0] if node.target is operator.getitem else None
        if region is not None:
            self.values[node] = self.inline(node, region)
        elif isinstance(source, Node) and isinstance(self.values[source], tuple):
            self.values[node] = self.values[source][node.args[1]]
        else:
            new = self.copy(node, self.values, self.step.graph_module, node.target)
            self.values[node] = new
            if self.step.kind(node) is not None:
                new.meta["stepgraph.node"] = node.name

    def inline(self, call: Node, region: GraphModule) -> Any:
        """Copy the nodes of a region; return its outputs."""
        inputs = (self.values[argument] for argument in call.all_input_nodes)
        values: dict[Node, Any] = {}
        for node in region.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs)
            elif node.op == "output":
                return tuple(values[result] for result in node.args[0])
            else:
                own_name = f"{call.target}_{node.target}"
                new = values[node] = self.copy(node, values, region, own_name)
                new.meta["stepgraph.node"] = call.name
        return ()

    def copy(self, node: Node, values: dict[Node, Any], owner: GraphModule, name: Any) -> Node:
        new = self.graph.node_copy(node, lambda argument: values[argument])
        if node.op in ("get_attr", "call_module"):
            new.target = name
            self.attributes[name] = operator.attrgetter(str(node.target))(owner)
        return new
