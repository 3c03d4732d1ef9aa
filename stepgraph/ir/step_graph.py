"""`StepGraph`, the representation that passes, analyses and lowering read and return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import networkx as nx
from torch.fx import GraphModule, Node

from stepgraph.effects import Kind
from stepgraph.ir.cut import cut
from stepgraph.ir.memory_access import all_storages
from stepgraph.ir.region import copied, cut_out, dissolve, region_of
from stepgraph.ir.resources import OPAQUE, Access, accesses
from stepgraph.ir.signature import Slot
from stepgraph.ir.views.dependencies import dependency_graph
from stepgraph.ir.views.dot import to_dot
from stepgraph.ir.views.text import describe
from stepgraph.ir.views.verify import Meaning, verify

_EDITED = tuple(
    f"stepgraph.{name}"
    for name in (
        *("kind", "phase", "slot", "reads", "writes"),
        *("label", "hyper", "opaque", "divisible", "part_of"),
    )
)
"""The metadata from which views are built."""

_SAID = "stepgraph.said"

View = TypeVar("View")


class Remark(NamedTuple):
    """A sentence that a pass has recorded with `StepGraph.say`, and its reasons as values."""

    sentence: str
    reasons: tuple[Enum, ...]


class StepGraph:
    """One training step: typed nodes in program order, and what they read and write.

    Top-level nodes are placeholders (the slots), regions of ATen nodes (`call_module`), effects
    (the markers), one output, and glue between them: `getitem` and views, which have no kind.

    A step graph begins as one flat graph. The typed graph is built on first use; from then on it
    may be edited, and the flat graph is derived from it.

    Args:
        flat: ATen nodes and markers in program order, with the metadata of a capture. The step
            graph owns it; `partition` copies it instead.
    """

    def __init__(self, flat: GraphModule) -> None:
        cut(flat.graph)
        self._flat: GraphModule | None = flat
        self._typed: GraphModule | None = None
        self._cut_at: tuple[Any, ...] = ()
        self._views: dict[str, Any] = {}

    @property
    def graph_module(self) -> GraphModule:
        """The typed FX graph. It may be edited."""
        if self._typed is None:
            self._typed = cut_out(self.flat())
            self._cut_at = self.version()
        return self._typed

    @property
    def is_typed(self) -> bool:
        """Whether the typed graph has been built and may have been edited."""
        return self._typed is not None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The top-level nodes in execution order."""
        return tuple(self.graph_module.graph.nodes)

    def kind(self, node: Node) -> Kind | None:
        """Return the kind of `node`; None for placeholders, glue and the output."""
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
        """Return the slot of an input."""
        slot = placeholder.meta["stepgraph.slot"]
        assert isinstance(slot, Slot)
        return slot

    def region(self, node: Node) -> GraphModule | None:
        """Return the ATen nodes of the region `node`, or None if it is no region."""
        return region_of(self.graph_module, node)

    def dependencies(self) -> nx.DiGraph[Node]:
        """Return the dependency graph of the present order: a frozen view, see `dependencies.py`.

        It is cached, and rebuilt after any edit of the FX graph.
        """
        view: nx.DiGraph[Node] = self._keep(
            "dependencies",
            (self.graph_module, self.version()),
            lambda: dependency_graph(self),
        )
        return view

    def flat(self) -> GraphModule:
        """Return the step as one flat graph; do not edit it.

        It is rebuilt after any edit of the typed graph or of one of its regions.
        """
        assert self._flat is not None, "the flat graph of this step was taken to be edited"
        if self._typed is not None and (version := self.version()) != self._cut_at:
            self._flat, self._cut_at = dissolve(self._typed), version
        return self._flat

    def take_flat(self) -> GraphModule:
        """Return the flat graph, to be edited and made a new step graph: `StepGraph(flat)`.

        A pass takes it after its analysis. Nothing is copied, so this step graph must not be used
        any more.
        """
        flat = self.flat()
        self._flat = self._typed = None
        self._views.clear()
        return flat

    def graphs(self) -> tuple[GraphModule, ...]:
        """Return the FX graphs of the step: the flat one, or the typed one with its regions."""
        if self._typed is None:
            return (self.flat(),)
        return (self._typed, *filter(None, map(self.region, self.nodes)))

    def version(self) -> tuple[Any, ...]:
        """Return a value that changes with any edit of the FX graphs."""
        return tuple(
            (node, node.target, node.args, node.kwargs, *map(node.meta.get, _EDITED))
            for module in self.graphs()
            for node in module.graph.nodes
        )

    def accesses(self) -> dict[Node, Access]:
        """Return what every node of the flat graph reads and writes; cached as a view."""
        flat = self.flat()
        return self.view("accesses", lambda: accesses(flat.graph, self.storages()))

    def storages(self) -> dict[Node, frozenset[Node]]:
        """Return the storages of every node of the flat graph; cached as a view."""
        flat = self.flat()
        return self.view("storages", lambda: all_storages(flat.graph))

    def view(self, name: str, build: Callable[[], View]) -> View:
        """Return the result of `build`, cached until the next edit of the graph.

        Args:
            name: The key of the cache: a different one for each `build`.
            build: An analysis of `flat()`.
        """
        found: View = self._keep(name, self.flat(), build)
        return found

    def _keep(self, name: str, of: object, build: Callable[[], Any]) -> Any:
        known, view = self._views.get(name, (None, None))
        if known != of:
            view = build()
            self._views[name] = of, view
        return view

    def count(self) -> dict[Kind, int]:
        """Return the number of nodes of each kind that occurs, in the order of `Kind`."""
        counted = Counter(self.kind(node) for node in self.nodes)
        return {kind: counted[kind] for kind in Kind if counted[kind]}

    def say(self, sentence: str, *reasons: Enum) -> None:
        """Record in a sentence what a pass has done to this step.

        The record survives `flatten` and `partition`.

        Args:
            sentence: Short, numbers first: "early update 121 of 148 (27 wait for: gradient norm)".
            reasons: The reasons in the sentence as values, for code that reads the record.
        """
        meta = self.graphs()[0].meta
        meta[_SAID] = (*meta.get(_SAID, ()), Remark(sentence, reasons))

    def said(self) -> tuple[Remark, ...]:
        """Return and remove the records of passes; the pipeline calls this."""
        return tuple(self.graphs()[0].meta.pop(_SAID, ()))

    def copy(self) -> StepGraph:
        """Return an independent copy; edits of one do not change the other."""
        return StepGraph(copied(self.flat()))

    def reordered(self, order: Iterable[Node]) -> StepGraph:
        """Return this step with its nodes in `order`, a permutation of `nodes`.

        Placeholders keep their positions at the front, because their order is the signature.
        """
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        rest = [node for node in order if node.op != "placeholder"]
        for node, following in pairwise([*inputs, *rest]):
            node.append(following)
        return self

    def verify(self, against: StepGraph | Meaning | None = None) -> None:
        """Check that the graph is well formed and, if given, equivalent to `against`.

        Raises:
            VerifyError: It is not; the message names the first violation.
        """
        verify(self, against=against)

    def to_dot(self) -> str:
        """Return the typed nodes and their dependencies as Graphviz text."""
        return to_dot(self)

    def __str__(self) -> str:
        return describe(self)


def partition(flat: GraphModule) -> StepGraph:
    """Return the step graph of a flat graph: ATen nodes and markers in program order.

    It is cut into regions, maximal runs of computing nodes of one kind and phase between two
    effects; see `cut` and `cut_out`.

    Args:
        flat: With the metadata of a capture. Copied; later edits of it do not change the step.
    """
    return StepGraph(copied(flat))


def flatten(step: StepGraph) -> GraphModule:
    """Return `step` as an independent flat graph: regions dissolved, program order kept.

    Every node that belongs to a typed node has its name in `meta["stepgraph.node"]`.
    """
    return copied(step.flat())
