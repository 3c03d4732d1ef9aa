"""The bytes allocated by a step that are alive while each of its nodes runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Graph, Node

from stepgraph.analysis.ownership import stealable
from stepgraph.analysis.traffic import size_of
from stepgraph.ir import StepGraph, all_storages, marker_argument, slot_name, stored_gradients


@dataclass(frozen=True)
class Peak:
    """The peak of memory.

    Attributes:
        bytes: The number of bytes alive.
        node: The node of the flat graph that runs at the peak.
    """

    bytes: int
    node: Node


def live_bytes(graph: Graph) -> dict[Node, int]:
    """Return, for every node that computes, the bytes alive while it runs.

    Counts memory that the step itself allocates: activations, gradients, results. Parameters, the
    batch, optimizer state, gradients of the previous call and workspaces of operators do not count.
    A value is freed after its last use; results stay, and gradients until they are cleared.

    Args:
        graph: A flat graph whose nodes carry fake tensors in `meta["val"]`.

    Cost: O(nodes + edges).
    """
    return Memory(graph, all_storages(graph)).live_bytes()


def memory_of(step: StepGraph) -> Memory:
    """Return the memory of the nodes of a step, computed once."""
    return step.view("memory", lambda: Memory(step.flat().graph, step.storages()))


def peak(graph: Graph) -> Peak | None:
    """Return the peak of memory of a flat graph; None if nothing computes."""
    return Memory(graph, all_storages(graph)).peak


class Memory:
    """The memory of the nodes of a flat graph, for any order in which they run.

    Attributes:
        nodes: The nodes in program order, the default order of all methods.
        storages: The storages of every node, from `all_storages`.
        sizes: The bytes that every node allocates.
    """

    def __init__(self, graph: Graph, storages: Mapping[Node, frozenset[Node]]) -> None:
        self.nodes = list(graph.nodes)
        self.storages = storages
        self.sizes = {node: _allocates(node) for node in self.nodes}

    @cached_property
    def peak(self) -> Peak | None:
        """The peak in program order; None if nothing computes."""
        found = self.live_bytes()
        node = max(found, key=lambda node: found[node], default=None)
        return None if node is None else Peak(found[node], node)

    @cached_property
    def held(self) -> Mapping[Node, frozenset[Node]]:
        """The memories of every node in program order; see `held_by`."""
        return self.held_by(self.nodes)

    def peak_bytes(self, order: Sequence[Node]) -> int:
        """Return the largest number of bytes that are alive at once."""
        return max(self.live_bytes(order).values(), default=0)

    def inevitable_bytes(self, node: Node) -> int:
        """Return the bytes that are alive while `node` runs in every order.

        These are its own, and those of ancestors that its descendants also use.
        """
        before = _reached(node, lambda n: n.all_input_nodes)
        after = _reached(node, lambda n: n.users)
        needed = {root for n in after for source in n.all_input_nodes for root in self.held[source]}
        needed |= self.held[node]
        return sum(self.sizes[root] for root in needed & before if root.op == "call_function")

    def live_bytes(self, order: Sequence[Node] | None = None) -> dict[Node, int]:
        """Return, for every node that computes, the bytes alive while it runs; see `live_bytes`."""
        order = self.nodes if order is None else order
        last = self._lifetimes(order)
        dying: dict[Node, int] = defaultdict(int)
        for root, node in last.items():
            if node is not None:
                dying[node] += self.sizes[root]
        alive, found = 0, {}
        for node in order:
            alive += self.sizes[node] if node in last else 0
            if node.op == "call_function":
                found[node] = alive
            alive -= dying.get(node, 0)
        return found

    def held_by(self, order: Sequence[Node]) -> Mapping[Node, frozenset[Node]]:
        """Return the memories of every node; a gradient stored without a copy has its value's."""
        stolen = stealable(order, self.storages)
        values = {node: self.storages[marker_argument(node, "value")] for node in stolen}
        if not values:
            return self.storages
        held = dict(self.storages)
        for node, roots in self.storages.items():
            if not values.keys().isdisjoint(roots):
                held[node] = frozenset().union(*(values.get(root, (root,)) for root in roots))
        return held

    def _lifetimes(self, order: Sequence[Node]) -> dict[Node, Node | None]:
        """Return, for every node that allocates memory, the last node that uses it.

        None for memory that outlives the step: results, and gradients that are not cleared.
        """
        memories = self.held if order is self.nodes else self.held_by(order)
        last: dict[Node, Node | None] = {}
        grads: dict[str, frozenset[Node]] = {}
        for node in order:
            for used in (*node.all_input_nodes, node):
                for root in memories[used]:
                    last[root] = node
            for param, grad in stored_gradients(node):
                slot = slot_name(param)
                last.update(dict.fromkeys(grads.pop(slot, ()), node))
                if grad is not None:
                    grads[slot] = memories[grad]
            if node.op == "output":
                stays = [memories[used] for used in node.all_input_nodes]
                last.update(dict.fromkeys(frozenset().union(*stays, *grads.values())))
        return {root: node for root, node in last.items() if root.op == "call_function"}


def _reached(node: Node, neighbours: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return all nodes reachable from `node` through `neighbours`, itself included."""
    found, todo = {node}, [node]
    while todo:
        new = set(neighbours(todo.pop())) - found
        found |= new
        todo += new
    return found


def _allocates(node: Node) -> int:
    """Return the bytes that `node` allocates; items of a tuple are counted at their `getitem`."""
    value = node.meta.get("val")
    return 0 if isinstance(value, list | tuple) else size_of(value)
