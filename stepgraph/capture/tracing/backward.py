"""The function that a trace inlines for `loss.backward()`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stepgraph.capture.objects.table import entry_name, tracked
from stepgraph.capture.options.call_options import CallOptions
from stepgraph.capture.options.current import divisor, weight
from stepgraph.effects import OPS

_add_grad_ = OPS.add_grad_
_first_grad = OPS.first_grad


def backward_stand_in(options: CallOptions, scaler: int | None = None) -> Callable[..., None]:
    """Return the function that replaces `loss.backward()`.

    Args:
        options: The options of the call: whether the seed is a share of the window, and whether
            autocast is on around the step and must be off here.
        scaler: The number of the scaler whose scale multiplies the seed.
    """
    windowed, casting = options.windowed, options.autocast is not None
    scaler_name = None if scaler is None else entry_name(scaler)

    def backward(
        loss: Tensor,
        leaves: list[Tensor],
        gradient: Tensor | None,
        retain_graph: bool | None,
        allow_unused: bool,
    ) -> None:
        if windowed:
            seed = torch.ones_like(loss) if gradient is None else gradient
            gradient = seed / divisor() if divisor() > 1 else seed
            gradient = gradient * weight() if weight() < 1 else gradient
        if scaler_name is not None:
            seed = torch.ones_like(loss) if gradient is None else gradient
            scale = tracked(scaler_name).scale
            gradient = seed * scale.to(device=loss.device, non_blocking=True)
        if casting:
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                _backward(loss, leaves, gradient, retain_graph, allow_unused)
        else:
            _backward(loss, leaves, gradient, retain_graph, allow_unused)

    return backward


def _backward(
    loss: Tensor,
    leaves: list[Tensor],
    gradient: Tensor | None,
    retain_graph: bool | None,
    allow_unused: bool,
) -> None:
    """Compute all gradients, then accumulate them into `.grad` as `AccumulateGrad` does."""
    values = torch.autograd.grad(
        loss, leaves, gradient, retain_graph=retain_graph, allow_unused=allow_unused
    )
    with torch.no_grad():
        for leaf, value in zip(leaves, values):  # noqa: B905  (traced)
            if value is not None:
                if leaf.grad is None:
                    leaf.grad = _first_grad(leaf, value)
                else:
                    _add_grad_(leaf.grad, value)


BACKWARD_CODES = frozenset({backward_stand_in(CallOptions()).__code__, _backward.__code__})
"""The code of these functions: the nodes that they make have the kind backward."""
