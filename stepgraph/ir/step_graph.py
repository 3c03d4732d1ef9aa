"""StepGraph, the one structure every other part of the library reads or returns."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import networkx as nx
from torch.fx import GraphModule, Node

from stepgraph.ir.dependencies import dependency_graph
from stepgraph.ir.dot import to_dot
from stepgraph.ir.flatten import flatten
from stepgraph.ir.kind import Kind
from stepgraph.ir.resources import OPAQUE
from stepgraph.ir.signature import Slot
from stepgraph.ir.text import describe
from stepgraph.ir.verify import Meaning, verify

_EDITED = ("stepgraph.kind", "stepgraph.reads", "stepgraph.writes")
"""Metadata that views are built from."""

_SAID = "stepgraph.said"


@dataclass(frozen=True, eq=False)
class StepGraph:
    """One training step: typed nodes in program order, and what they read and write.

    Top-level nodes are placeholders (the slots), regions of ATen nodes (`call_module`), effects
    (the markers), one output, and glue between them: `getitem` and views, which have no kind.

    Attributes:
        graph_module: The FX graph. The only source of truth; passes edit it.
    """

    graph_module: GraphModule
    _views: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The top-level nodes in execution order."""
        return tuple(self.graph_module.graph.nodes)

    def kind(self, node: Node) -> Kind | None:
        """Return what `node` does in the step; None for placeholders, glue and the output."""
        kind = node.meta.get("stepgraph.kind")
        return None if kind is None else Kind(kind)

    def reads(self, node: Node) -> frozenset[str]:
        """Return the resources `node` reads, the barrier of opaque steps included."""
        reads = frozenset(node.meta.get("stepgraph.reads", ()))
        return reads if self.kind(node) is None else reads | {OPAQUE}

    def writes(self, node: Node) -> frozenset[str]:
        """Return the resources `node` writes."""
        return frozenset(node.meta.get("stepgraph.writes", ()))

    def slot(self, placeholder: Node) -> Slot:
        """Return what the input `placeholder` is."""
        slot = placeholder.meta["stepgraph.slot"]
        assert isinstance(slot, Slot)
        return slot

    def region(self, node: Node) -> GraphModule | None:
        """Return the ATen nodes that `node` stands for, or None if it is no region."""
        if node.op != "call_module":
            return None
        module = self.graph_module.get_submodule(str(node.target))
        return module if isinstance(module, GraphModule) else None

    def dependencies(self) -> nx.DiGraph[Node]:
        """Return the dependency graph of the present order: a frozen view, see `dependencies.py`.

        It is built once and again after any edit of the FX graph.
        """
        view: nx.DiGraph[Node] = self._view("dependencies", dependency_graph)
        return view

    def flat(self) -> GraphModule:
        """Return the step as one flat graph, to be read only; see `flatten`.

        It is built once and again after any edit of the FX graph, that of a region included.
        """
        view: GraphModule = self._view("flat", flatten)
        return view

    def version(self) -> tuple[Any, ...]:
        """Return a value that is another one after any edit of the FX graphs."""
        modules = [self.graph_module, *filter(None, map(self.region, self.nodes))]
        return tuple(
            (node, node.target, node.args, node.kwargs, *map(node.meta.get, _EDITED))
            for module in modules
            for node in module.graph.nodes
        )

    def _view(self, name: str, build: Callable[[StepGraph], Any]) -> Any:
        version = self.version()
        known, view = self._views.get(name, (None, None))
        if known != version:
            view = build(self)
            self._views[name] = version, view
        return view

    def count(self) -> dict[Kind, int]:
        """Return the number of nodes of each kind that occurs, in the order of `Kind`."""
        counted = Counter(self.kind(node) for node in self.nodes)
        return {kind: counted[kind] for kind in Kind if counted[kind]}

    def say(self, sentence: str) -> None:
        """Note what a pass has done to this step, in words, for its record.

        Short, with numbers first where there are any: "early update 121 of 148 (27 wait for:
        gradient norm)". A note survives `flatten` and `partition`.
        """
        self.graph_module.meta.setdefault(_SAID, []).append(sentence)

    def said(self) -> tuple[str, ...]:
        """Return what passes have said since this was asked last; the pipeline asks."""
        return tuple(self.graph_module.meta.pop(_SAID, ()))

    def copy(self) -> StepGraph:
        """Return a step graph of its own; edits of one do not show in the other."""
        return StepGraph(copy.deepcopy(self.graph_module))

    def reordered(self, order: Iterable[Node]) -> StepGraph:
        """Return this step with its nodes in `order`, a permutation of `nodes`.

        Placeholders keep their places in front, because their order is the signature.
        """
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        rest = [node for node in order if node.op != "placeholder"]
        for node, following in pairwise([*inputs, *rest]):
            node.append(following)
        return self

    def verify(self, against: StepGraph | Meaning | None = None) -> None:
        """Check that the graph is well formed and, given one, means what `against` means.

        Raises:
            VerifyError: It is not, with the first thing found.
        """
        verify(self, against=against)

    def to_dot(self) -> str:
        """Return the typed nodes and their dependencies as Graphviz text."""
        return to_dot(self)

    def __str__(self) -> str:
        return describe(self)
