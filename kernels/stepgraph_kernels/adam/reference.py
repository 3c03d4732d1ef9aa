"""Adam and AdamW in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph_kernels.spec import Group, State


def adam_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.Adam` or `AdamW`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, `exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`. Updated.
        group: `lr`, `betas`, `eps`, `weight_decay`, `amsgrad`, `maximize`,
            `decoupled_weight_decay`.
    """
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    grad = -grad if group["maximize"] else grad
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    step = state["step"].item()

    if group["weight_decay"] != 0:
        if group["decoupled_weight_decay"]:
            param.mul_(1 - lr * group["weight_decay"])
        else:
            grad = grad.add(param, alpha=group["weight_decay"])
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    second_moment = exp_avg_sq
    if group["amsgrad"]:
        second_moment = state["max_exp_avg_sq"]
        torch.maximum(second_moment, exp_avg_sq, out=second_moment)
    denominator = (second_moment.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    param.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))
