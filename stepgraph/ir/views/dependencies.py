"""The orderings that a schedule must keep, as a networkx graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import networkx as nx
from torch.fx import Graph, Node

from stepgraph.ir.memory_access import is_glue
from stepgraph.ir.resources import OPAQUE, Access
from stepgraph.ir.views.protocol import ReadableStep

_STRENGTH = {"data": 2, "output": 1, "anti": 0}


def dependency_graph(step: ReadableStep) -> nx.DiGraph[Node]:
    """Build the dependency graph of `step` in its present order.

    Nodes are the top-level FX nodes. An edge `u -> v` means that u must stay before v. Its `kind`
    says why: `data` (v uses what u returned or reads what u wrote), `output` (both write the same
    resource) or `anti` (v overwrites what u reads); the strongest reason is kept. `resource` is
    the resource concerned, None for a value that v receives from u.

    The result is a frozen view: passes analyse it, then change the FX graph. It
    must be built *before* nodes move, because `anti` and `output` edges come from the order
    itself. The output node comes after everything.

    Cost: O(nodes + edges).
    """
    builder = _Builder()
    for node in step.nodes:
        builder.add(node, reads=sorted(step.reads(node)), writes=sorted(step.writes(node)))
    builder.finish(step.nodes[-1])
    return nx.freeze(builder.graph)


def flat_dependencies(graph: Graph, access: Mapping[Node, Access]) -> nx.DiGraph[Node]:
    """Build the dependency graph of a flat graph, operator by operator; see `dependency_graph`.

    Args:
        graph: A flat graph, in its present order.
        access: What each of its nodes reads and writes, from `accesses`.
    """
    builder = _Builder()
    for node in graph.nodes:
        is_free = node.op in ("placeholder", "get_attr") or is_glue(node)
        reads = access[node].reads if is_free else access[node].reads | {OPAQUE}
        builder.add(node, reads=sorted(reads), writes=sorted(access[node].writes))
    builder.finish(next(iter(reversed(graph.nodes))))
    return builder.graph


class _Builder:
    """Adds nodes in program order; keeps the last readers and writer of each resource."""

    def __init__(self) -> None:
        self.graph: nx.DiGraph[Node] = nx.DiGraph()
        self.last_write: dict[str, Node] = {}
        self.reads_since: dict[str, list[Node]] = defaultdict(list)

    def add(self, node: Node, *, reads: list[str], writes: list[str]) -> None:
        self.graph.add_node(node)
        for source in node.all_input_nodes:
            self.edge(source, node, "data", None)
        for resource in reads:
            if (writer := self.last_write.get(resource)) is not None:
                self.edge(writer, node, "data", resource)
            self.reads_since[resource].append(node)
        for resource in writes:
            for reader in self.reads_since.pop(resource, ()):
                self.edge(reader, node, "anti", resource)
            if (writer := self.last_write.get(resource)) is not None:
                self.edge(writer, node, "output", resource)
            self.last_write[resource] = node

    def finish(self, output: Node) -> None:
        """Add edges from all nodes without successors to `output`."""
        for node in [n for n in self.graph if not self.graph.out_degree(n)]:
            self.edge(node, output, "data", None)

    def edge(self, source: Node, target: Node, kind: str, resource: str | None) -> None:
        if source is target:
            return
        known = self.graph.get_edge_data(source, target)
        if known is None or _STRENGTH[known["kind"]] < _STRENGTH[kind]:
            self.graph.add_edge(source, target, kind=kind, resource=resource)
