"""Free gradients after their last use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from stepgraph.analysis import size_of
from stepgraph.effects import OPS, SET_GRAD, calls
from stepgraph.ir import (
    Kind,
    StepGraph,
    marker_argument,
    marker_kind,
    slot_name,
)
from stepgraph.passes.base import Pass
from stepgraph.passes.dead_gradients import DROPPED, cleared_first, parameters


@dataclass(frozen=True)
class DropReadGradients(Pass):
    """Clear a gradient right after the last node that reads it.

    In eager mode, `.grad` keeps its memory until the next call clears it. Freed here, the memory
    can be reused in the rest of the step, and the clearing can move up together with an update.

    Legal if this step clears the slot before any other use. That no code reads it *between* calls
    is the caller's promise, `keep_grads=False`; that the next call also clears it first is checked
    in that call.

    Before::                                After::

        w.grad = None                           w.grad = None
        w.grad = backward(loss)                 w.grad = backward(loss)
        step(w, w.grad)                         step(w, w.grad)
                                                w.grad = None

    Preserves: every result, weight and state, bit for bit; not `.grad` between calls.
    Cost: O(nodes + edges).
    """

    keeps_effects: ClassVar[bool] = False

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step with every gradient cleared after its last use."""
        found = _last_readers(step)
        if not found:
            return step
        flat = step.take_flat()
        params = parameters(flat.graph)
        n_bytes = sum(size_of(params[slot].meta.get("val")) for slot in found)
        for slot, reader in found.items():
            _clear_after(reader, params[slot])
        cleared = StepGraph(flat)
        cleared.say(f"{len(found)} gradients of {n_bytes:,} bytes are freed after their last use")
        return cleared


def _last_readers(step: StepGraph) -> dict[str, Node]:
    """Return the last node that accesses each gradient that the step stores and does not clear."""
    stored: set[str] = set()
    last: dict[str, Node] = {}
    for node, access in step.accesses().items():
        if node.op in ("placeholder", "output"):
            continue
        if calls(node, SET_GRAD) and marker_argument(node, "grad") is not None:
            stored.add(slot_name(marker_argument(node, "param")))
        touched = access.reads | access.writes
        for resource in sorted(touched):
            if resource.startswith("grad:"):
                last[resource.removeprefix("grad:")] = node
    wanted = cleared_first(step) & stored
    return {
        slot: node
        for slot, node in last.items()
        if slot in wanted and not calls(node, SET_GRAD) and _reads(node)
    }


def _reads(node: Node) -> bool:
    return marker_kind(node) is not Kind.ZERO_GRAD


def _clear_after(reader: Node, param: Node) -> None:
    with reader.graph.inserting_after(reader):
        cleared = reader.graph.call_function(OPS.set_grad.default, (param, None))
    at = reader.meta.get("stepgraph.at")
    cleared.meta = {"val": None, "stepgraph.kind": Kind.ZERO_GRAD, DROPPED: True}
    if at is not None:
        cleared.meta["stepgraph.at"] = at
