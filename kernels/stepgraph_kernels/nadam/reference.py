"""NAdam in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.spec import Group, State


def nadam_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.NAdam`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, `mu_product`, `exp_avg`, `exp_avg_sq`. Updated.
        group: `lr`, `betas`, `eps`, `weight_decay`, `momentum_decay`, `maximize`,
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
    mu = beta1 * (1.0 - 0.5 * (0.96 ** (step * group["momentum_decay"])))
    mu_next = beta1 * (1.0 - 0.5 * (0.96 ** ((step + 1) * group["momentum_decay"])))
    state["mu_product"] *= mu
    product = state["mu_product"].item()

    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = exp_avg_sq.div(1 - beta2**step).sqrt().add_(group["eps"])
    param.addcdiv_(grad, denominator, value=-lr * (1.0 - mu) / (1.0 - product))
    param.addcdiv_(exp_avg, denominator, value=(-lr * mu_next) / (1.0 - product * mu_next))
