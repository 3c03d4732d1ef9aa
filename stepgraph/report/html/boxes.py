"""A step graph as boxes in layers, and the arrows between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import networkx as nx
from torch.fx import Node

from stepgraph.analysis import bytes_of, flops_of, launches
from stepgraph.ir import OPAQUE, Line, StepGraph, lines


@dataclass(frozen=True)
class Load:
    """The cost of the operators of a box.

    Attributes:
        launches: Number of operators that compute something.
        bytes: Bytes that the operators read and write, one by one.
        flops: Floating-point operations of matrix products, convolutions and attention.
    """

    launches: int = 0
    bytes: int = 0
    flops: int = 0

    def __add__(self, other: Load) -> Load:
        launches, n_bytes = self.launches + other.launches, self.bytes + other.bytes
        return Load(launches, n_bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Box:
    """A typed node, or a run of small nodes.

    Attributes:
        number: Index of the box in program order.
        name: Name of its first node.
        kind: Kind of its nodes.
        text: Its line in the printed step graph.
        nodes: Names of all its nodes.
        load: Cost of its operators; for an update without the optimizer's state.
        at: The user's file and line, or None.
        reads: Resources that it reads.
        writes: Resources that it writes.
        operators: ATen operators in it with their number of calls, most frequent first.
        layer: Length of the longest path of arrows that ends in it.
    """

    number: int
    name: str
    kind: str
    text: str
    at: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    operators: tuple[tuple[str, int], ...]
    layer: int
    nodes: tuple[str, ...]
    load: Load

    @property
    def headline(self) -> str:
        """The first part of `text` that is not in brackets, short enough for a box."""
        parts = self.text.replace(f" [{OPAQUE}]", "").split("  ")
        return next((part for part in parts if not part.startswith("[")), self.text)


@dataclass(frozen=True)
class Arrow:
    """A dependency: one box must run before another.

    Attributes:
        source: Number of the box that runs first.
        target: Number of the box that runs later.
        kind: `data`, `anti` or `output`.
    """

    source: int
    target: int
    kind: str


def boxes(step: StepGraph) -> tuple[list[Box], list[Arrow]]:
    """Return the boxes of a step in program order, and the transitive reduction of the arrows."""
    found = lines(step)
    order = _order(step, found)
    layers = {n: i for i, layer in enumerate(nx.topological_generations(order)) for n in layer}
    loads = _loads(step)
    drawn = [_box(step, line, i, layers[i], loads) for i, line in enumerate(found)]
    needed = nx.transitive_reduction(order)
    return drawn, [Arrow(a, b, order.edges[a, b]["kind"]) for a, b in sorted(needed.edges)]


def _order(step: StepGraph, found: list[Line]) -> nx.DiGraph[int]:
    """Return the dependencies between boxes; of several edges, a data edge is kept."""
    number_of = {node: i for i, line in enumerate(found) for node in line.nodes}
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(found)))
    behind: dict[Node, set[int]] = {}
    dependencies = step.dependencies()
    for node in step.nodes:
        own = number_of.get(node)
        behind[node] = set() if own is None else {own}
        for source, _, edge in dependencies.in_edges(node, data=True):
            for number in sorted(behind[source]):
                if own is None:
                    behind[node].add(number)  # a view or getitem passes on the boxes it depends on
                elif number != own:
                    known = graph.get_edge_data(number, own) or edge
                    kind = "data" if "data" in (known["kind"], edge["kind"]) else edge["kind"]
                    graph.add_edge(number, own, kind=kind)
    return graph


def _loads(step: StepGraph) -> dict[str, Load]:
    """Return the load of every typed node, by its name."""
    storages = step.storages()
    loads: dict[str, Load] = {}
    for node in step.flat().graph.nodes:
        name = node.meta.get("stepgraph.node")
        if name is not None and launches(node):
            own = Load(1, bytes_of(node, storages) or 0, flops_of(node))
            loads[name] = loads.get(name, Load()) + own
    return loads


def _box(step: StepGraph, line: Line, number: int, layer: int, loads: dict[str, Load]) -> Box:
    reads = frozenset[str]().union(*map(step.reads, line.nodes))
    writes = frozenset[str]().union(*map(step.writes, line.nodes))
    return Box(
        number=number,
        name=line.nodes[0].name,
        kind=line.kind.value,
        text=line.text,
        at=line.nodes[0].meta.get("stepgraph.at"),
        reads=tuple(sorted(reads - {OPAQUE})),
        writes=tuple(sorted(writes)),
        operators=tuple(_operators(step, line).most_common()),
        layer=layer,
        nodes=tuple(node.name for node in line.nodes),
        load=sum((loads.get(node.name, Load()) for node in line.nodes), Load()),
    )


def _operators(step: StepGraph, line: Line) -> Counter[str]:
    regions = [region for region in map(step.region, line.nodes) if region is not None]
    inner = [node for region in regions for node in region.graph.nodes]
    effects = [node for node in line.nodes if node.op == "call_function"]
    calls = (node for node in (*inner, *effects) if node.op == "call_function")
    names = (str(getattr(node.target, "__name__", node.target)) for node in calls)
    return Counter(name.removesuffix(".default") for name in names)
