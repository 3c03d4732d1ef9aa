"""SGD in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.spec import Group, State


def sgd_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.SGD`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape. Read only.
        state: `momentum_buffer` once there has been a step with momentum. Updated.
        group: `lr`, `momentum`, `dampening`, `nesterov`, `weight_decay`, `maximize`.
    """
    grad = -grad if group["maximize"] else grad
    if group["weight_decay"] != 0:
        grad = grad.add(param, alpha=group["weight_decay"])
    if group["momentum"] != 0:
        grad = _momentum(grad, state, group)
    param.add_(grad, alpha=-float(group["lr"]))


def _momentum(grad: Tensor, state: State, group: Group) -> Tensor:
    buffer = state.get("momentum_buffer")
    if buffer is None:
        buffer = state["momentum_buffer"] = grad.clone()
    else:
        buffer.mul_(group["momentum"]).add_(grad, alpha=1 - group["dampening"])
    return grad.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
