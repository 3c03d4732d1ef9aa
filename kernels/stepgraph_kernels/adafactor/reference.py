"""Adafactor in plain PyTorch: what the kernels must compute, written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph_kernels.spec import Group, State


def adafactor_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.Adafactor`, bit for bit as `foreach=False` does.

    An empty parameter, for which torch divides by zero, only counts the step.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, and `row_var`, `col_var` or, for a vector, `variance`. Updated.
        group: `lr`, `beta2_decay`, `eps`, `d`, `weight_decay`, `maximize`.
    """
    lr, (eps1, eps2) = float(group["lr"]), group["eps"]
    eps1 = torch.finfo(param.dtype).eps if eps1 is None else eps1
    grad = -grad if group["maximize"] else grad
    state["step"] += 1
    step = state["step"].item()
    if param.numel() == 0:
        return

    weight = step ** group["beta2_decay"]
    alpha = max(eps2, param.norm(2).item() / param.numel() ** 0.5) * min(lr, 1 / step**0.5)
    if group["weight_decay"] != 0:
        param.mul_(1 - lr * group["weight_decay"])
    if grad.dim() > 1:
        estimate = _factored_(grad, state["row_var"], state["col_var"], weight, eps1)
    else:
        estimate = state["variance"].lerp_(grad * grad, weight).clone()

    update = estimate.clamp_(min=eps1 * eps1).rsqrt_().mul_(grad)
    denominator = max(1.0, update.norm(2).item() / (update.numel() ** 0.5 * group["d"]))
    param.add_(update, alpha=-alpha / denominator)


def _factored_(
    grad: Tensor, row_var: Tensor, col_var: Tensor, weight: float, eps1: float
) -> Tensor:
    """Update the means over rows and columns; return the estimate they make together."""
    for mean, dim in ((row_var, -1), (col_var, -2)):
        squares = torch.norm(grad, dim=dim, keepdim=True).square_().div_(grad.size(dim))
        mean.lerp_(squares, weight)
    return (row_var @ col_var).div_(row_var.mean(dim=-2, keepdim=True).clamp_(min=eps1))
