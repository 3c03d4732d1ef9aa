"""Checks that a window, `accumulate=n` or `microbatches=n`, is well defined for a step."""

from __future__ import annotations

from torch.fx import Graph, Node

from stepgraph.capture.objects import TrackedObjects
from stepgraph.effects import FIRST_GRAD, calls
from stepgraph.errors import ConfigurationError
from stepgraph.ir import node_effect, stored_gradients


def check_window(graph: Graph, objects: TrackedObjects, option: str) -> None:
    """Check a step that has been traced with the options of a window.

    Args:
        graph: Its flat graph.
        objects: The tracked objects; the `order` of each optimizer counts its updates and clears.
        option: The name of the option, for messages.

    Raises:
        ConfigurationError: The step does not define what the last run of a window should do.
    """
    orders = [optimizer.order for optimizer in objects.optimizers]
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
    """Return whether `node` stores a tensor in `.grad` outside of a backward."""
    by_slot = (effect := node_effect(node)) is not None and "param" in effect.positions
    return by_slot and any(not calls(grad, FIRST_GRAD) for _, grad in stored_gradients(node))


def _refuse(option: str, found: str, hint: str, at: str | None = None) -> None:
    runs = "call" if option == "accumulate" else "micro-batch"
    raise ConfigurationError(
        f"{option} has no meaning for this step",
        at=at,
        found=found,
        why=f"gradients are cleared in the first {runs} and an update comes in the last",
        hint=hint,
    )
