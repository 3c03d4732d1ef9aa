"""A step graph in the words of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepgraph.ir.step_graph import StepGraph


def describe(step: StepGraph) -> str:
    """Return one line for each typed node of `step`."""
    lines = []
    for i, node in enumerate(step.nodes):
        if (kind := step.kind(node)) is not None:
            lines.append(f"{i} {kind.value} {node.name}")
    return "\n".join(lines)
