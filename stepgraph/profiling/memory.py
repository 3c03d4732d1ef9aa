"""How much of what a step allocates is alive after each of its nodes."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from stepgraph.analysis import size_of
from stepgraph.ir import all_storages, marker_argument, marker_name
from stepgraph.lowering import stealable


@dataclass(frozen=True)
class Peak:
    """Where most bytes are alive.

    Attributes:
        bytes: How many.
        node: The node of the flat graph after whose start they are.
    """

    bytes: int
    node: Node


def live_bytes(graph: Graph) -> dict[Node, int]:
    """Return, for every node that computes, the bytes alive while it runs.

    Counted is what the step itself allocates: activations, gradients, results. Parameters, the
    batch, optimizer state, gradients of the call before and what an operator needs inside are
    not. A value is freed behind its last use; results and gradients that are stored stay.

    Args:
        graph: A flat graph whose nodes carry fake tensors in `meta["val"]`.
    """
    storages = _memories(graph)
    dies_after = _last_uses(graph, storages)
    alive, found, allocated = 0, {}, set[Node]()
    dying: dict[Node, list[Node]] = {}
    for root, node in dies_after.items():
        dying.setdefault(node, []).append(root)
    for node in graph.nodes:
        if node.op == "call_function":
            for root in storages[node] - allocated:
                if root.op == "call_function" and root is node:
                    alive += _allocates(node)
                    allocated.add(node)
            found[node] = alive
        for root in dying.get(node, ()):
            alive -= _allocates(root) if root in allocated else 0
    return found


def peak(graph: Graph) -> Peak | None:
    """Return the place of a flat graph where most bytes are alive; None for one without nodes."""
    found = live_bytes(graph)
    if not found:
        return None
    node = max(found, key=lambda node: found[node])
    return Peak(found[node], node)


def _memories(graph: Graph) -> dict[Node, frozenset[Node]]:
    """Return the storages of every node; a gradient that is its value has that of the value."""
    storages = all_storages(graph)
    values = {node: storages[marker_argument(node, "value")] for node in stealable(graph)}
    return {
        node: frozenset().union(*(values.get(root, (root,)) for root in roots))
        for node, roots in storages.items()
    }


def _allocates(node: Node) -> int:
    """Return the bytes of what `node` allocates; the pieces of a tuple count for themselves."""
    value = node.meta.get("val")
    return 0 if isinstance(value, list | tuple) else size_of(value)


def _last_uses(graph: Graph, storages: dict[Node, frozenset[Node]]) -> dict[Node, Node]:
    """Return, for every memory, the last node that uses it; those that stay have none."""
    last: dict[Node, Node] = {}
    stays: set[Node] = set()
    for node in graph.nodes:
        for used in (*node.all_input_nodes, node):
            for root in storages[used]:
                last[root] = node
        if node.op == "output":
            stays |= {root for used in node.all_input_nodes for root in storages[used]}
        elif marker_name(node) == "set_grad" and marker_argument(node, "grad") is not None:
            stays |= storages[marker_argument(node, "grad")]
    return {root: node for root, node in last.items() if root not in stays}
