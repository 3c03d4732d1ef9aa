"""Adamax in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph_kernels.spec import Group, State


def adamax_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.Adamax`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, `exp_avg`, `exp_inf`. Updated.
        group: `lr`, `betas`, `eps`, `weight_decay`, `maximize`.
    """
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    grad = -grad if group["maximize"] else grad
    exp_avg, exp_inf = state["exp_avg"], state["exp_inf"]
    state["step"] += 1
    if group["weight_decay"] != 0:
        grad = grad.add(param, alpha=group["weight_decay"])
    exp_avg.lerp_(grad, 1 - beta1)
    torch.maximum(exp_inf.mul_(beta2), grad.abs().add_(group["eps"]), out=exp_inf)
    param.addcdiv_(exp_avg, exp_inf, value=-lr / (1 - beta1 ** state["step"].item()))
