"""The interface through which views read a step graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import networkx as nx
from torch.fx import GraphModule, Node

from stepgraph.effects import Kind
from stepgraph.ir.resources import Access
from stepgraph.ir.signature import Slot


class ReadableStep(Protocol):
    """A step graph as its views read it; `StepGraph` is one."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The top-level nodes in execution order."""

    @property
    def is_typed(self) -> bool:
        """Whether the typed graph has been built."""

    def kind(self, node: Node) -> Kind | None:
        """Return the kind of a top-level node."""

    def reads(self, node: Node) -> frozenset[str]:
        """Return the resources that a node reads."""

    def writes(self, node: Node) -> frozenset[str]:
        """Return the resources that a node writes."""

    def slot(self, placeholder: Node) -> Slot:
        """Return the slot of an input."""

    def region(self, node: Node) -> GraphModule | None:
        """Return the ATen nodes of a region."""

    def graphs(self) -> tuple[GraphModule, ...]:
        """Return the FX graphs of the step."""

    def accesses(self) -> Mapping[Node, Access]:
        """Return what every node of the flat graph reads and writes."""

    def dependencies(self) -> nx.DiGraph[Node]:
        """Return the dependency graph."""
