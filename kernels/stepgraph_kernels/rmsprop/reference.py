"""RMSprop in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.spec import Group, State


def rmsprop_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.RMSprop`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `step`, `square_avg`, `momentum_buffer` with momentum, `grad_avg` if centered.
            Updated.
        group: `lr`, `alpha`, `eps`, `weight_decay`, `momentum`, `centered`, `maximize`.
    """
    lr, alpha = float(group["lr"]), group["alpha"]
    grad = -grad if group["maximize"] else grad
    square_avg = state["square_avg"]
    state["step"] += 1

    if group["weight_decay"] != 0:
        grad = grad.add(param, alpha=group["weight_decay"])
    square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
    if group["centered"]:
        grad_avg = state["grad_avg"]
        grad_avg.lerp_(grad, 1 - alpha)
        deviation = square_avg.addcmul(grad_avg, grad_avg, value=-1).sqrt_()
    else:
        deviation = square_avg.sqrt()
    deviation.add_(group["eps"])

    if group["momentum"] > 0:
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).addcdiv_(grad, deviation)
        param.add_(buffer, alpha=-lr)
    else:
        param.addcdiv_(grad, deviation, value=-lr)
