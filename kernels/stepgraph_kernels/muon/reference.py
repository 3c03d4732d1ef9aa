"""Muon in plain PyTorch: what the kernels must compute, written to be read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepgraph_kernels.spec import Group, State


def muon_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.Muon`, bit for bit.

    Args:
        param: A matrix of weights, `[rows, columns]`. Updated.
        grad: The gradient, same shape. Read only.
        state: `momentum_buffer`. Updated.
        group: `lr`, `weight_decay`, `momentum`, `nesterov`, `ns_coefficients`, `ns_steps`, `eps`,
            `adjust_lr_fn`.
    """
    lr, momentum = float(group["lr"]), group["momentum"]
    buffer = state["momentum_buffer"]
    buffer.lerp_(grad, 1 - momentum)
    update = grad.lerp(buffer, momentum) if group["nesterov"] else buffer
    direction = _orthogonal(update, group)
    param.mul_(1 - lr * group["weight_decay"])
    param.add_(direction, alpha=-lr * lr_ratio(param.shape, group))


def lr_ratio(shape: torch.Size, group: Group) -> float:
    """How much of the learning rate a matrix of this shape gets."""
    rows, columns = shape
    if group["adjust_lr_fn"] in (None, "original"):
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def _orthogonal(matrix: Tensor, group: Group) -> Tensor:
    a, b, c = group["ns_coefficients"]
    x = matrix.bfloat16()
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
