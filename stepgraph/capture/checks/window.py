"""Does a window, `accumulate=n` or `microbatches=n`, have a meaning for a step?"""

from __future__ import annotations

from torch.fx import Graph, Node

from stepgraph.capture.objects.registry import OptimizerSubject, Subjects
from stepgraph.errors import ConfigurationError
from stepgraph.ir import marker_argument, marker_name
from stepgraph.ir.markers import OPS


def check_window(graph: Graph, subjects: Subjects, option: str) -> None:
    """Check a step that has been traced on the terms of a window.

    Args:
        graph: Its flat graph.
        subjects: The subjects it met; their order says what happened to them.
        option: The option that asks for it.

    Raises:
        ConfigurationError: It is not clear what should wait for the last run of a window.
    """
    orders = [s.order for s in subjects.all if isinstance(s, OptimizerSubject)]
    for parts in list(zip(*(order.parts for order in orders), strict=True)) or [()]:
        if not any(part.updates for part in parts):
            _refuse(
                option,
                "this path through the step updates nothing",
                f"{_BY_HAND[option]} by hand or by the option, not both",
            )
        if any(part.updates > 1 for part in parts):
            _refuse(
                option,
                "the step updates an optimizer twice",
                "one update of an optimizer in a call",
            )
        if any(part.updates and not part.clearings for part in parts):
            _refuse(
                option,
                "the step never clears the gradients of its optimizer",
                "optimizer.zero_grad()",
            )
    stored = next(filter(_stores_by_hand, graph.nodes), None)
    if stored is not None:
        _refuse(
            option,
            "the step stores or clears a gradient by hand",
            "optimizer.zero_grad() and loss.backward()",
            at=stored.meta.get("stepgraph.at"),
        )


_BY_HAND = {"accumulate": "accumulate", "microbatches": "split the batch"}


def _stores_by_hand(node: Node) -> bool:
    """Return whether `node` stores in a `.grad` what no backward has put there."""
    if marker_name(node) != "set_grad":
        return False
    value = marker_argument(node, "grad")
    return not isinstance(value, Node) or value.target is not OPS.first_grad.default


def _refuse(option: str, found: str, hint: str, at: str | None = None) -> None:
    runs = "call" if option == "accumulate" else "micro-batch"
    raise ConfigurationError(
        f"{option} has no meaning for this step",
        at=at,
        found=found,
        why=f"gradients are cleared in the first {runs} and an update comes in the last",
        hint=hint,
    )
