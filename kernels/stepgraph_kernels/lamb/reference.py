"""LAMB in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph_kernels.spec import Group, State


def lamb_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of LAMB, as in Algorithm 2 of arXiv 1904.00962, phi the identity.

    Args:
        param: The weights of one layer, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, `exp_avg`, `exp_avg_sq`. Updated.
        group: `lr`, `betas`, `eps`, `weight_decay`, `maximize`.
    """
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    grad = -grad if group["maximize"] else grad
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    step = state["step"].item()

    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt().add_(group["eps"])
    update = exp_avg / (1 - beta1**step) / denominator + group["weight_decay"] * param

    param_norm, update_norm = param.norm(), update.norm()
    known = (param_norm > 0) & (update_norm > 0)
    ratio = torch.where(known, param_norm / update_norm, torch.ones_like(param_norm))
    # a norm that is nan is not 0: it must reach the weights
    ratio = torch.where(update_norm.isnan(), update_norm, ratio)
    param.sub_(lr * ratio * update)
