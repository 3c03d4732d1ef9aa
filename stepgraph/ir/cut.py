"""Group the nodes of a flat graph into the nodes of a step graph."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from stepgraph.effects import Kind
from stepgraph.ir.effect_nodes import marker_kind
from stepgraph.ir.memory_access import is_glue


@dataclass(eq=False)
class Unit:
    """Nodes of a flat graph that are one node of a step graph.

    Attributes:
        name: The name of that node.
        kind: Its kind; None for placeholders, glue and the output.
        phase: The number of the backward that it belongs to or precedes.
        nodes: The nodes of the flat graph, in program order.
        is_region: Whether it is a run of computing nodes; any other unit is a single node.
    """

    name: str
    kind: Kind | None = None
    phase: int | None = None
    nodes: list[Node] = field(default_factory=list)
    is_region: bool = False


def cut(graph: Graph) -> list[Unit]:
    """Cut a flat graph into units, in program order.

    A region is a maximal run of computing nodes of one kind and phase between two effects. Views
    and sizes make no region of their own: they join the computation beside them.

    Stores in `meta["stepgraph.node"]` of every node the name of its typed node.

    Cost: O(nodes).
    """
    cutter = _Cutter()
    for node in graph.nodes:
        cutter.add(node)
    for unit in cutter.units:
        for node in unit.nodes:
            if unit.kind is None:
                node.meta.pop("stepgraph.node", None)
            else:
                node.meta["stepgraph.node"] = unit.name
    return cutter.units


class _Cutter:
    """Collects runs; keeps glue apart until its run is known."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.run: Unit | None = None
        self.waiting: list[Node] = []
        self.counted: Counter[Kind] = Counter()

    def add(self, node: Node) -> None:
        kind = marker_kind(node)
        if node.op == "get_attr":
            self._before_run(Unit(node.name, nodes=[node]))
        elif node.op in ("placeholder", "output") or kind is not None:
            self._close()
            self.units.append(Unit(node.name, kind, node.meta.get("stepgraph.phase"), [node]))
        elif is_glue(node) and not self._belongs(node):
            self.waiting.append(node)
        else:
            self._compute(node)

    def _belongs(self, glue: Node) -> bool:
        """Return whether a glue node certainly belongs to the open run."""
        if self.run is None or self.waiting:
            return False
        piece = glue.target is operator.getitem and glue.args[0] in self.run.nodes[-1:]
        return piece or _key(glue) == (self.run.kind, self.run.phase)

    def _compute(self, node: Node) -> None:
        if self.run is None or _key(node) != (self.run.kind, self.run.phase):
            kind, phase = _key(node)
            name = f"{kind.value}_{self.counted[kind]}"
            self.counted[kind] += 1
            self.run = Unit(name, kind, phase, is_region=True)
            self.units.append(self.run)
        self.run.nodes += [*self.waiting, node]
        self.waiting = []

    def _close(self) -> None:
        self.units += [Unit(node.name, nodes=[node]) for node in self.waiting]
        self.run, self.waiting = None, []

    def _before_run(self, unit: Unit) -> None:
        position = len(self.units) if self.run is None else self.units.index(self.run)
        self.units.insert(position, unit)


def _key(node: Node) -> tuple[Kind, int | None]:
    kind = Kind(node.meta.get("stepgraph.kind") or Kind.FORWARD)
    return kind, node.meta.get("stepgraph.phase")
