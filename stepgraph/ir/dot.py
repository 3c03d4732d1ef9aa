"""A step graph as Graphviz text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepgraph.ir.step_graph import StepGraph


def to_dot(step: StepGraph) -> str:
    """Return the typed nodes of `step` and their dependencies as Graphviz text."""
    edges = [f'  "{u}" -> "{v}";' for u, v in step.dependencies().edges]
    return "\n".join(["digraph step {", *edges, "}"])
