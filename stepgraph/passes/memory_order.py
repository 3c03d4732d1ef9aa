"""Computation moves to where it keeps fewer bytes alive."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import torch
from torch.fx import Graph, Node

from stepgraph.analysis import allocates, may_raise, memories_of, peak
from stepgraph.ir import (
    Access,
    StepGraph,
    accesses,
    flat_dependencies,
    flatten,
    marker_name,
    partition,
)
from stepgraph.passes.base import Pass


@dataclass(frozen=True)
class OrderForMemory(Pass):
    """Order operators so that fewer bytes are alive at once.

    A step that runs two forwards before their backwards holds the activations of both. Nothing
    but the order of the program asks for that: the backward of the first can run before the
    forward of the second.

    Before::                        After::

        a = forward(x)                  a = forward(x)
        b = forward(y)                  ga = backward(a)
        gb = backward(b)                b = forward(y)
        ga = backward(a)                gb = backward(b)

    Legal in any order that the dependencies allow, in which effects, writes to slots, random
    draws, and operators that may raise keep theirs. What gives back more memory comes first; among
    equals, what goes on with the latest values. The program's own order stays unless this one
    lowers the peak by enough.

    Preserves: every result, bit for bit.
    Cost: O(E + V log V) in the dependency graph of the operators.

    Attributes:
        least_bytes: A lower peak that is not worth another order.
        least_share: The same as a share of the peak.
    """

    least_bytes: int = 2**20
    least_share: float = 1 / 16

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step in the order with the lowest peak."""
        now = _peak_bytes(step)
        if now <= self.least_bytes:
            return step
        flat = flatten(step)
        _free_constants(flat.graph)
        _reorder(flat.graph)
        ordered = partition(flat)
        then = _peak_bytes(ordered)
        if now - then < max(self.least_bytes, self.least_share * now):
            return step
        ordered.say(f"peak {now:,} -> {then:,} bytes in another order")
        return ordered


def _peak_bytes(step: StepGraph) -> int:
    found = peak(step.flat().graph)
    return 0 if found is None else found.bytes


def _reorder(graph: Graph) -> None:
    """Put a flat graph in an order that gives memory back soon."""
    access = accesses(graph, {node: node for node in graph.nodes})
    dependencies = flat_dependencies(graph, access)
    pinned = [node for node in graph.nodes if _is_pinned(node, access[node])]
    dependencies.add_edges_from(pairwise(pinned))
    order = _ordered(graph, dependencies)
    for node, following in pairwise(order):
        node.append(following)


def _free_constants(graph: Graph) -> None:
    """Make the ones that a backward begins with without looking at the loss for its size."""
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.target is not torch.ops.aten.ones_like.default or value.shape != ():
            continue
        with graph.inserting_before(node):
            kind = {"dtype": value.dtype, "device": value.device}
            ones = graph.call_function(torch.ops.aten.full.default, ([], 1), kind)
        ones.meta = dict(node.meta)
        node.replace_all_uses_with(ones)
        graph.erase_node(node)


def _is_pinned(node: Node, access: Access) -> bool:
    """Return whether somebody can see when a node runs, or it belongs to one of those."""
    if node.op in ("placeholder", "output"):
        return False
    writes = any(not name.startswith("value:") for name in access.writes)
    return writes or marker_name(node) is not None or may_raise(node)


@dataclass
class _Progress:
    """What has run so far while an order is made.

    Attributes:
        done: The place of every node that has run.
        waiting: How many nodes that have not run use each memory.
        memories: The memories of every node.
    """

    done: dict[Node, int]
    waiting: dict[Node, int]
    memories: Mapping[Node, frozenset[Node]]

    def run(self, node: Node) -> None:
        """Note that a node has run."""
        self.done[node] = len(self.done)
        for memory in self.used(node):
            self.waiting[memory] -= 1

    def allocated(self, node: Node) -> int:
        """Return the bytes that a node adds when it runs; a view adds none."""
        return allocates(node) if node in self.memories[node] else 0

    def released(self, node: Node) -> int:
        """Return the bytes that die with a node if it runs next."""
        dying = (m for m in self.used(node) if m.op == "call_function" and self.waiting[m] == 1)
        return sum(map(allocates, dying))

    def recency(self, node: Node) -> int:
        """Return how long ago, as a negative number, the latest of its values was computed."""
        computed = (memory for memory in self.used(node) if memory.op == "call_function")
        return -max((self.done.get(m, len(self.done)) for m in computed), default=0)

    def used(self, node: Node) -> frozenset[Node]:
        """Return the memories that a node reads or writes."""
        used = (self.memories[source] for source in node.all_input_nodes)
        return frozenset().union(*used)

    def urgency(self, node: Node) -> tuple[int, int]:
        """Return a number for a node: lower for what gives back more, then for what goes on."""
        return self.allocated(node) - self.released(node), self.recency(node)


def _ordered(graph: Graph, dependencies: nx.DiGraph[Node]) -> list[Node]:
    """Return the nodes in an order that the dependencies allow, the most urgent first."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    progress = _Progress({}, dict.fromkeys(graph.nodes, 0), memories_of(graph))
    for node in graph.nodes:
        for memory in progress.used(node):
            progress.waiting[memory] += 1

    def key(node: Node) -> tuple[int, int, int]:
        if node.op in ("placeholder", "get_attr"):
            return -sys.maxsize, 0, place[node]
        return *progress.urgency(node), place[node]

    order = []
    for node in nx.lexicographical_topological_sort(dependencies, key):
        progress.run(node)
        order.append(node)
    return order
