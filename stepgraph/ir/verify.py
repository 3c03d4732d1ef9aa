"""verify: a step graph is well formed and means what the captured one means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepgraph.errors import VerifyError

if TYPE_CHECKING:
    from stepgraph.ir.step_graph import StepGraph


def verify(step: StepGraph, *, against: StepGraph | None = None) -> None:
    """Check that `step` is well formed."""
    try:
        step.graph_module.graph.lint()
    except RuntimeError as error:
        raise VerifyError("the step graph is malformed", found=str(error)) from error
