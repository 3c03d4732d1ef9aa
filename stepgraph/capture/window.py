"""Does `accumulate=n` have a meaning for a step?"""

from __future__ import annotations

from torch.fx import Graph, Node

from stepgraph.capture.subjects import OptimizerSubject, Subjects
from stepgraph.errors import ConfigurationError
from stepgraph.ir import marker_argument, marker_name
from stepgraph.ir.markers import OPS


def check_window(graph: Graph, subjects: Subjects) -> None:
    """Check a step that has been traced on the terms of a window.

    Args:
        graph: Its flat graph.
        subjects: The subjects it met; their order says what happened to them.

    Raises:
        ConfigurationError: It is not clear what should wait for the last call of a window.
    """
    orders = [s.order for s in subjects.all if isinstance(s, OptimizerSubject)]
    if not any(order.updates for order in orders):
        _refuse(
            "this path through the step updates nothing",
            "accumulate by hand or by the option, not both",
        )
    if any(order.updates > 1 for order in orders):
        _refuse("the step updates an optimizer twice", "one update of an optimizer in a call")
    if any(order.updates and not order.clearings for order in orders):
        _refuse("the step never clears the gradients of its optimizer", "optimizer.zero_grad()")
    stored = next(filter(_stores_by_hand, graph.nodes), None)
    if stored is not None:
        _refuse(
            "the step stores or clears a gradient by hand",
            "optimizer.zero_grad() and loss.backward()",
            at=stored.meta.get("stepgraph.at"),
        )


def _stores_by_hand(node: Node) -> bool:
    """Return whether `node` stores in a `.grad` what no backward has put there."""
    if marker_name(node) != "set_grad":
        return False
    value = marker_argument(node, "grad")
    return not isinstance(value, Node) or value.target is not OPS.first_grad.default


def _refuse(found: str, hint: str, at: str | None = None) -> None:
    raise ConfigurationError(
        "accumulate has no meaning for this step",
        at=at,
        found=found,
        why="a window clears gradients in its first call and updates in its last",
        hint=hint,
    )
