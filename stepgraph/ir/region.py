"""partition: cut a flat graph of ATen nodes into the typed nodes of a step graph."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from torch.fx import Graph, GraphModule, Node

from stepgraph.ir.effects import is_glue
from stepgraph.ir.kind import Kind, marker_kind
from stepgraph.ir.resources import Access, accesses
from stepgraph.ir.step_graph import StepGraph
from stepgraph.torch_private import graph_module


@dataclass(eq=False)
class _Unit:
    """Nodes of a flat graph that become one top-level node."""

    kind: Kind | None = None
    phase: int | None = None
    nodes: list[Node] = field(default_factory=list)
    is_region: bool = False


def partition(flat: GraphModule) -> StepGraph:
    """Cut a flat graph into typed nodes, keeping program order.

    A region is a maximal run of computing nodes of one kind and phase between two effects. It
    becomes a `call_module`; values that cross its border become arguments and outputs. Views and
    sizes make no region of their own: they go with the computation beside them.

    Before::                                After::

        t = aten.t(weight)                      forward_0 = forward_0(weight, x)
        y = aten.mm(x, t)                       y = forward_0[0]
        loss = aten.sum(y)                      backward_0 = backward_0(y, x)
        ones = aten.ones_like(loss)             gw = backward_0[0]
        gw = aten.mm(...)                       stepgraph.set_grad(weight, gw)
        stepgraph.set_grad(weight, gw)

    Args:
        flat: ATen nodes and markers in program order, with the metadata of a capture. Unchanged.

    Returns:
        A step graph whose nodes state what they read and write.
    """
    units = _cut(flat.graph)
    unit_of = {node: unit for unit in units for node in unit.nodes}
    access = accesses(flat.graph, unit_of)
    builder = _Builder(flat, unit_of)
    for unit in units:
        node = builder.add(unit)
        node.meta["stepgraph.kind"] = unit.kind
        total = reduce(operator.or_, (access[n] for n in unit.nodes), Access())
        node.meta["stepgraph.reads"] = tuple(sorted(total.reads))
        node.meta["stepgraph.writes"] = tuple(sorted(total.writes))
        if unit.is_region and total.writes:
            builder.attributes[str(node.target)]._is_impure = True
    return StepGraph(builder.finish())


def _cut(graph: Graph) -> list[_Unit]:
    """Return the units in program order."""
    cutter = _Cutter()
    for node in graph.nodes:
        cutter.add(node)
    return cutter.units


class _Cutter:
    """Collects runs; glue waits until it is clear which run it goes with."""

    def __init__(self) -> None:
        self.units: list[_Unit] = []
        self.run: _Unit | None = None
        self.waiting: list[Node] = []

    def add(self, node: Node) -> None:
        kind = marker_kind(node)
        if node.op == "get_attr":
            self._before_run(_Unit(nodes=[node]))
        elif node.op in ("placeholder", "output") or kind is not None:
            self._close()
            self.units.append(_Unit(kind, node.meta.get("stepgraph.phase"), [node]))
        elif is_glue(node) and not self._belongs(node):
            self.waiting.append(node)
        else:
            self._compute(node)

    def _belongs(self, glue: Node) -> bool:
        """Return whether a piece of glue clearly is part of the open run."""
        if self.run is None or self.waiting:
            return False
        piece = glue.target is operator.getitem and glue.args[0] in self.run.nodes[-1:]
        return piece or _key(glue) == (self.run.kind, self.run.phase)

    def _compute(self, node: Node) -> None:
        if self.run is None or _key(node) != (self.run.kind, self.run.phase):
            self.run = _Unit(*_key(node), is_region=True)
            self.units.append(self.run)
        self.run.nodes += [*self.waiting, node]
        self.waiting = []

    def _close(self) -> None:
        self.units += [_Unit(nodes=[node]) for node in self.waiting]
        self.run, self.waiting = None, []

    def _before_run(self, unit: _Unit) -> None:
        place = len(self.units) if self.run is None else self.units.index(self.run)
        self.units.insert(place, unit)


def _key(node: Node) -> tuple[Kind, int | None]:
    kind = Kind(node.meta.get("stepgraph.kind") or Kind.FORWARD)
    return kind, node.meta.get("stepgraph.phase")


class _Builder:
    """Builds the top-level graph, one unit after the other."""

    def __init__(self, flat: GraphModule, unit_of: dict[Node, _Unit]) -> None:
        self.flat = flat
        self.unit_of = unit_of
        self.graph = Graph()
        self.attributes: dict[str, Any] = {}
        self.values: dict[Node, Node] = {}
        self.counted: Counter[Kind | None] = Counter()

    def add(self, unit: _Unit) -> Node:
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
        module.meta.update(self.flat.meta)
        return module

    def _add_region(self, unit: _Unit) -> Node:
        assert unit.kind is not None
        name = f"{unit.kind.value}_{self.counted[unit.kind]}"
        self.counted[unit.kind] += 1
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

    def _inputs(self, unit: _Unit) -> list[Node]:
        used = (source for node in unit.nodes for source in node.all_input_nodes)
        return list(dict.fromkeys(n for n in used if self.unit_of[n] is not unit))

    def _outputs(self, unit: _Unit) -> list[Node]:
        return [node for node in unit.nodes if any(self._outside(unit, node))]

    def _outside(self, unit: _Unit, node: Node) -> Iterator[bool]:
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
