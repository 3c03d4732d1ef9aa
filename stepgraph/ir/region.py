"""Regions: conversion of a flat graph of ATen nodes to the typed graph of a step, and back."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from typing import Any

from torch.fx import Graph, GraphModule, Node

from stepgraph.ir.cut import Unit, cut
from stepgraph.ir.memory_access import all_storages
from stepgraph.ir.resources import Access, accesses
from stepgraph.torch_private import graph_module


def cut_out(flat: GraphModule) -> GraphModule:
    """Build the typed graph of a flat one, keeping program order.

    A region becomes a `call_module`; values that enter or leave it become arguments and outputs.

    Before::                                After::

        t = aten.t(weight)                      forward_0 = forward_0(weight, x)
        y = aten.mm(x, t)                       y = forward_0[0]
        loss = aten.sum(y)                      backward_0 = backward_0(y, x)
        ones = aten.ones_like(loss)             gw = backward_0[0]
        gw = aten.mm(...)                       stepgraph.set_grad(weight, gw)
        stepgraph.set_grad(weight, gw)

    Args:
        flat: ATen nodes and markers in program order, with the metadata of a capture.

    Returns:
        A graph whose nodes state what they read and write.
    """
    units = cut(flat.graph)
    unit_of = {node: unit for unit in units for node in unit.nodes}
    access = accesses(flat.graph, all_storages(flat.graph), unit_of)
    builder = _Builder(flat, unit_of)
    for unit in units:
        node = builder.add(unit)
        node.meta["stepgraph.kind"] = unit.kind
        total = reduce(operator.or_, (access[n] for n in unit.nodes), Access())
        node.meta["stepgraph.reads"] = tuple(sorted(total.reads))
        node.meta["stepgraph.writes"] = tuple(sorted(total.writes))
        if unit.is_region and total.writes:
            builder.attributes[str(node.target)]._is_impure = True
    return builder.finish()


def region_of(typed: GraphModule, node: Node) -> GraphModule | None:
    """Return the ATen nodes of a region of a typed graph; None if the node is no region."""
    if node.op != "call_module":
        return None
    module = typed.get_submodule(str(node.target))
    return module if isinstance(module, GraphModule) else None


def dissolve(typed: GraphModule) -> GraphModule:
    """Return the flat graph of a typed one, the inverse of `cut_out`.

    Every node that belongs to a typed node has its name in `meta["stepgraph.node"]`.
    """
    dissolver = _Dissolver(typed)
    for node in typed.graph.nodes:
        dissolver.add(node)
    module = graph_module(dissolver.attributes, dissolver.graph)
    module.meta = typed.meta
    return module


class _Builder:
    """Builds the top-level graph, one unit after the other."""

    def __init__(self, flat: GraphModule, unit_of: dict[Node, Unit]) -> None:
        self.flat = flat
        self.unit_of = unit_of
        self.graph = Graph()
        self.attributes: dict[str, Any] = {}
        self.values: dict[Node, Node] = {}

    def add(self, unit: Unit) -> Node:
        """Add the top-level node of `unit` and return it."""
        if unit.is_region:
            return self._add_region(unit)
        (node,) = unit.nodes
        new = self.graph.node_copy(node, self.values.__getitem__)
        self.values[node] = new
        if node.op == "get_attr":
            self.attributes[str(node.target)] = operator.attrgetter(str(node.target))(self.flat)
        return new

    def finish(self) -> GraphModule:
        module = graph_module(self.attributes, self.graph)
        module.meta = self.flat.meta
        return module

    def _add_region(self, unit: Unit) -> Node:
        name = unit.name
        inputs, outputs = self._inputs(unit), self._outputs(unit)
        self.attributes[name] = _submodule(unit.nodes, inputs, outputs, name)
        call = self.graph.create_node(
            "call_module", name, tuple(self.values[node] for node in inputs), name=name
        )
        call.meta["val"] = tuple(node.meta.get("val") for node in outputs)
        call.meta["stepgraph.phase"] = unit.phase
        for key in ("stepgraph.at", "stepgraph.loss"):
            for known in (node.meta[key] for node in unit.nodes if key in node.meta):
                call.meta.setdefault(key, known)
        for i, node in enumerate(outputs):
            item = self.graph.create_node(
                "call_function", operator.getitem, (call, i), name=node.name
            )
            item.meta["val"] = node.meta.get("val")
            if "stepgraph.value" in node.meta:
                item.meta["stepgraph.value"] = node.meta["stepgraph.value"]
            self.values[node] = item
        return call

    def _inputs(self, unit: Unit) -> list[Node]:
        used = (source for node in unit.nodes for source in node.all_input_nodes)
        return list(dict.fromkeys(n for n in used if self.unit_of[n] is not unit))

    def _outputs(self, unit: Unit) -> list[Node]:
        return [node for node in unit.nodes if any(self._outside(unit, node))]

    def _outside(self, unit: Unit, node: Node) -> Iterator[bool]:
        return (self.unit_of[user] is not unit for user in node.users)


def _submodule(
    nodes: list[Node], inputs: list[Node], outputs: list[Node], name: str
) -> GraphModule:
    graph = Graph()
    values: dict[Node, Node] = {}
    for node in inputs:
        values[node] = graph.create_node("placeholder", node.name, name=node.name)
        values[node].meta["val"] = node.meta.get("val")
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in outputs))
    return graph_module({}, graph, name)


class _Dissolver:
    def __init__(self, typed: GraphModule) -> None:
        self.typed = typed
        self.graph = Graph()
        self.attributes: dict[str, Any] = {}
        self.values: dict[Node, Any] = {}

    def add(self, node: Node) -> None:
        """Copy a top-level node, or the nodes of its region."""
        region = region_of(self.typed, node)
        source = node.args[0] if node.target is operator.getitem else None
        if region is not None:
            self.values[node] = self.inline(node, region)
        elif isinstance(source, Node) and isinstance(self.values[source], tuple):
            self.values[node] = self.values[source][node.args[1]]
        else:
            new = self.copy(node, self.values, self.typed, node.target)
            self.values[node] = new
            if node.meta.get("stepgraph.kind") is not None:
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


def copied(flat: GraphModule) -> GraphModule:
    """Return an independent copy of a flat graph, with the same node names."""
    graph = Graph()
    values: dict[Node, Node] = {}
    for node in flat.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    module = graph_module(flat, graph)
    module.meta.update(flat.meta)
    return module
