"""Lion in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.spec import Group, State


def lion_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of Lion, as in Algorithm 2 of arXiv 2302.06675.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `exp_avg`. Updated.
        group: `lr`, `betas`, `weight_decay`, `maximize`.
    """
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    grad = -grad if group["maximize"] else grad
    exp_avg = state["exp_avg"]
    mixed = exp_avg * beta1 + grad * (1 - beta1)
    update = mixed.sign().where(~mixed.isnan(), mixed)
    param.mul_(1 - lr * group["weight_decay"]).sub_(update, alpha=lr)
    exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)
