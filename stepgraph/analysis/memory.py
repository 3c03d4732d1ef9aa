"""How much of what a step allocates is alive while each of its nodes runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Graph, Node

from stepgraph.analysis.ownership import stealable
from stepgraph.analysis.traffic import size_of
from stepgraph.ir import all_storages, marker_argument, marker_name, slot_name


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
    not. A value is freed behind its last use; results stay, and gradients until they are cleared.

    Args:
        graph: A flat graph whose nodes carry fake tensors in `meta["val"]`.

    Cost: O(nodes + edges).
    """
    lives = lifetimes(graph)
    dying: dict[Node, list[int]] = {}
    for root, last in lives.items():
        if last is not None:
            dying.setdefault(last, []).append(allocates(root))
    alive, found = 0, {}
    for node in graph.nodes:
        alive += allocates(node) if node in lives else 0
        if node.op == "call_function":
            found[node] = alive
        alive -= sum(dying.get(node, ()))
    return found


def peak(graph: Graph) -> Peak | None:
    """Return the place of a flat graph where most bytes are alive; None for one without nodes."""
    found = live_bytes(graph)
    if not found:
        return None
    node = max(found, key=lambda node: found[node])
    return Peak(found[node], node)


def lifetimes(graph: Graph) -> dict[Node, Node | None]:
    """Return, for every node that allocates memory, the last one to need it.

    None for what outlives the step: results, and gradients that are not cleared.
    """
    memories = memories_of(graph)
    last: dict[Node, Node | None] = {}
    held: dict[str, frozenset[Node]] = {}
    for node in graph.nodes:
        for used in (*node.all_input_nodes, node):
            last.update(dict.fromkeys(memories[used], node))
        for slot, grad in _stored(node):
            last.update(dict.fromkeys(held.pop(slot, ()), node))
            if grad is not None:
                held[slot] = memories[grad]
        if node.op == "output":
            stays = [memories[used] for used in node.all_input_nodes]
            last.update(dict.fromkeys(frozenset().union(*stays, *held.values())))
    return {root: node for root, node in last.items() if root.op == "call_function"}


def memories_of(graph: Graph) -> dict[Node, frozenset[Node]]:
    """Return the storages of every node; a gradient that is its value has that of the value."""
    storages = all_storages(graph)
    values = {node: storages[marker_argument(node, "value")] for node in stealable(graph)}
    if not values:
        return storages
    return {
        node: frozenset().union(*(values.get(root, (root,)) for root in roots))
        for node, roots in storages.items()
    }


def allocates(node: Node) -> int:
    """Return the bytes of what `node` allocates; the pieces of a tuple count for themselves."""
    value = node.meta.get("val")
    return 0 if isinstance(value, list | tuple) else size_of(value)


def _stored(node: Node) -> Iterator[tuple[str, Node | None]]:
    """Yield the slots whose `.grad` a node sets, each with what it stores."""
    name = marker_name(node)
    if name == "set_grad":
        yield slot_name(marker_argument(node, "param")), marker_argument(node, "grad")
    elif name == "zero_grad":
        yield from ((slot_name(param), None) for param in marker_argument(node, "params"))
