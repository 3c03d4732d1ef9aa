"""RAdam in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.spec import Group, State


def radam_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.RAdam`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, `exp_avg`, `exp_avg_sq`. Updated.
        group: `lr`, `betas`, `eps`, `weight_decay`, `maximize`, `decoupled_weight_decay`.
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
    corrected = exp_avg / (1 - beta1**step)

    correction2 = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * (beta2**step) / correction2
    if rho > 5.0:
        top = (rho - 4) * (rho - 2) * rho_inf
        rectification = (top / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        adaptive = (correction2**0.5) / exp_avg_sq.sqrt().add_(group["eps"])
        param.add_(corrected * lr * adaptive * rectification, alpha=-1.0)
    else:
        param.add_(corrected * lr, alpha=-1.0)
