"""Order operators for a lower peak of memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import torch
from torch.fx import Graph, Node

from stepgraph.analysis import Memory, may_raise, memory_of
from stepgraph.ir import Access, StepGraph, flat_dependencies, marker_name
from stepgraph.passes.base import Pass


@dataclass(frozen=True)
class OrderForMemory(Pass):
    """Order operators so that fewer bytes are alive at once.

    A step that runs two forwards before their backwards keeps the activations of both. Often only
    the order of the program requires that: the backward of the first can run before the forward of
    the second.

    Before::                        After::

        a = forward(x)                  a = forward(x)
        b = forward(y)                  ga = backward(a)
        gb = backward(b)                b = forward(y)
        ga = backward(a)                gb = backward(b)

    Legal in any order that the dependencies allow, in which effects, writes to slots, random
    draws, and operators that may raise keep their relative order. Operators that free more memory
    come first; among equals, those that use the latest values. The program's own order stays
    unless the new one lowers the peak by enough; if most of the peak is alive in every order, none
    is tried.

    Preserves: every result, bit for bit.
    Cost: O(E + V log V) in the dependency graph of the operators.

    Attributes:
        least_bytes: Least saving, in bytes, for which the order changes.
        least_share: Least saving as a share of the peak.
    """

    least_bytes: int = 2**20
    least_share: float = 1 / 16

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step in the order with the lowest peak."""
        memory = memory_of(step)
        if memory.peak is None:
            return step
        now, node = memory.peak.bytes, memory.peak.node
        least = max(self.least_bytes, self.least_share * now)
        if now < least or now - memory.inevitable_bytes(node) < least:
            return step
        order = _ordered(step, memory)
        then = memory.peak_bytes(order)
        if now - then < least:
            return step
        flat = step.take_flat()
        _apply(flat.graph, order)
        ordered = StepGraph(flat)
        ordered.say(f"peak {now:,} -> {then:,} bytes in another order")
        return ordered


def _ordered(step: StepGraph, memory: Memory) -> list[Node]:
    """Return the nodes in an order that the dependencies allow and that frees memory early."""
    nodes, access = list(step.flat().graph.nodes), step.accesses()
    dependencies = flat_dependencies(step.flat().graph, access)
    pinned = [node for node in nodes if _is_pinned(node, access[node])]
    dependencies.add_edges_from(pairwise(pinned))
    constants = filter(_is_constant, nodes)
    dependencies.remove_edges_from((n, node) for node in constants for n in node.all_input_nodes)
    place = {node: i for i, node in enumerate(nodes)}
    progress = _Progress(nodes, memory)

    def key(node: Node) -> tuple[int, int, int]:
        if node.op in ("placeholder", "get_attr"):
            return -sys.maxsize, 0, place[node]
        return *progress.urgency(node), place[node]

    order = []
    for node in nx.lexicographical_topological_sort(dependencies, key):
        progress.run(node)
        order.append(node)
    return order


def _is_constant(node: Node) -> bool:
    """Return whether `node` is the seed of a backward: a constant of a known size."""
    return node.target is torch.ops.aten.ones_like.default and node.meta["val"].shape == ()


def _needed(node: Node) -> list[Node]:
    """Return the nodes that must run before `node`."""
    return [] if _is_constant(node) else node.all_input_nodes


def _apply(graph: Graph, order: Sequence[Node]) -> None:
    """Put nodes in order; constants no longer read their size from the loss."""
    for node, following in pairwise(order):
        node.append(following)
    for node in filter(_is_constant, order):
        value = node.meta["val"]
        with graph.inserting_before(node):
            kind = {"dtype": value.dtype, "device": value.device}
            ones = graph.call_function(torch.ops.aten.full.default, ([], 1), kind)
        ones.meta = dict(node.meta)
        node.replace_all_uses_with(ones)
        graph.erase_node(node)


def _is_pinned(node: Node, access: Access) -> bool:
    """Return whether the user can observe the position of a node, or it belongs to such a node."""
    if node.op in ("placeholder", "output"):
        return False
    writes = any(not name.startswith("value:") for name in access.writes)
    return writes or marker_name(node) is not None or may_raise(node)


class _Progress:
    """The nodes that have run so far, while an order is made.

    Attributes:
        used: The memories that every node reads or writes, except those that the caller owns.
        allocated: The bytes that every node allocates; a view allocates none.
        done: The position of every node that has run.
        waiting: The number of nodes that have not run and use each memory.
    """

    def __init__(self, nodes: Sequence[Node], memory: Memory) -> None:
        held = memory.held_by(nodes)
        self.used = {
            node: {m for n in _needed(node) for m in held[n] if m.op == "call_function"}
            for node in nodes
        }
        self.allocated = {node: memory.sizes[node] if node in held[node] else 0 for node in nodes}
        self.sizes = memory.sizes
        self.done: dict[Node, int] = {}
        self.waiting = Counter(memory for used in self.used.values() for memory in used)

    def run(self, node: Node) -> None:
        """Record that a node has run."""
        self.done[node] = len(self.done)
        for memory in self.used[node]:
            self.waiting[memory] -= 1

    def urgency(self, node: Node) -> tuple[int, int]:
        """Return a sort key: lower for nodes that free more memory, then for recent inputs."""
        used = self.used[node]
        released = sum(self.sizes[memory] for memory in used if self.waiting[memory] == 1)
        latest = max((self.done.get(memory, len(self.done)) for memory in used), default=0)
        return self.allocated[node] - released, -latest
