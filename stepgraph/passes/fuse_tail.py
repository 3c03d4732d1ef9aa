"""Fuse clipping and update into one node, for kernels that do both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from stepgraph.effects import OPS, STEP, calls
from stepgraph.ir import Kind, StepGraph, marker_argument
from stepgraph.passes.base import Pass

_SCALE = torch.ops.aten._foreach_mul_.Tensor


@dataclass(frozen=True)
class FuseTail(Pass):
    """Let an update multiply its gradients by the factor that clips them.

    Fused kernels take such a factor as an argument: gradients are read and written once, not twice.

    Before::                        After::

        factor = clip(norm)             factor = clip(norm)
        w.grad *= factor                w.grad *= factor; step(w, w.grad)
        step(w, w.grad)

    Legal if no node accesses the gradients between the two. For backends that have such kernels;
    the result is rounded as in the kernel.

    Preserves: every result, up to the rounding of the kernel.
    Cost: O(nodes + edges).
    """

    def __call__(self, step: StepGraph) -> StepGraph:
        """Return the step with clipping inside the updates."""
        found = list(_pairs(step))
        if not found:
            return step
        flat = step.take_flat()
        for scale, update in found:
            _fuse(scale, update)
        fused = StepGraph(flat)
        labels = ", ".join(update.meta.get("stepgraph.label", "step") for _, update in found)
        fused.say(f"clipping inside the update of {labels}")
        return fused


def _pairs(step: StepGraph) -> Iterator[tuple[Node, Node]]:
    """Yield each update with the node that scales its gradients, without accesses in between."""
    touched: dict[str, Node] = {}
    for node, access in step.accesses().items():
        if calls(node, STEP) and node.meta.get("stepgraph.divisible", False):
            latest = {touched.get(name) for name in access.reads if name.startswith("grad:")}
            grads = marker_argument(node, "grads")
            scale = latest.pop() if len(latest) == 1 else None
            if grads and scale is not None and _scales(scale, grads):
                yield scale, node
        names = access.reads | access.writes
        touched.update({name: node for name in names if name.startswith("grad:")})


def _scales(node: Node, grads: list[Node]) -> bool:
    """Return whether `node` clips all of `grads`."""
    is_clip = node.target is _SCALE and node.meta.get("stepgraph.kind") is Kind.CLIP
    return is_clip and set(grads) <= set(marker_argument(node, "self"))


def _fuse(scale: Node, update: Node) -> None:
    params, grads, subject = (marker_argument(update, n) for n in ("params", "grads", "subject"))
    factor = marker_argument(scale, "other")
    with update.graph.inserting_before(update):
        arguments = (params, grads, factor, subject)
        target = OPS.clipped_step.default
        fused = update.graph.create_node("call_function", target, arguments, name="clipped_step")
    fused.meta = {**update.meta, "stepgraph.part_of": update.name}
    update.graph.erase_node(update)
    left = [grad for grad in marker_argument(scale, "self") if grad not in grads]
    scale.args = (left, factor)
    if not left:
        update.graph.erase_node(scale)
