"""Adagrad in plain PyTorch: what the kernel must compute, written to be read."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.spec import Group, State


def adagrad_reference_(param: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Apply one step of `torch.optim.Adagrad`, bit for bit as `foreach=False` does.

    Args:
        param: The weights, `[...]`, any floating dtype. Updated.
        grad: The gradient, same shape, dense. Read only.
        state: `step`, `sum`. Updated.
        group: `lr`, `lr_decay`, `eps`, `weight_decay`, `maximize`.
    """
    state["step"] += 1
    step = state["step"].item()
    grad = -grad if group["maximize"] else grad
    if group["weight_decay"] != 0:
        grad = grad.add(param, alpha=group["weight_decay"])
    lr = float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
    state["sum"].addcmul_(grad, grad, value=1)
    param.addcdiv_(grad, state["sum"].sqrt().add_(group["eps"]), value=-lr)
