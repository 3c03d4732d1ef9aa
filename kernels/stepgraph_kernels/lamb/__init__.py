"""LAMB: Adam with a step as large as the layer. torch has none, so the optimizer is here too."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from stepgraph_kernels.lamb.kernel import lamb_measure, lamb_prepare, lamb_update
from stepgraph_kernels.lamb.reference import lamb_reference_
from stepgraph_kernels.plain_optimizer import PlainOptimizer
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["LAMB", "Lamb", "lamb_reference_"]

_RULE = Rule(lamb_update, ("exp_avg", "exp_avg_sq"), measure=lamb_measure)


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], *group["betas"], group["eps"], group["weight_decay"])


def _initial_state(param: Tensor, group: Group) -> State:
    return {"step": counter(param)} | zeros_like(param, _RULE)


LAMB = Family(
    name="LAMB",
    prepare=lamb_prepare,
    hyper_names=("lr", "beta1", "beta2", "eps", "weight_decay"),
    coefficients=9,
    counters=("step",),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=lamb_reference_,
)


class Lamb(PlainOptimizer):
    """LAMB (arXiv 1904.00962), in plain PyTorch; `fuse` gives it the kernels.

    Args:
        params: Parameters or parameter groups; each parameter is a layer.
        lr: Learning rate, relative to the norm of the layer.
        betas: Decay rates of the two moments.
        eps: Added to the denominator, outside the square root.
        weight_decay: Added to the direction before its norm is taken.
        maximize: Ascend.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Lamb([weight], lr=0.1)
        >>> weight.grad = torch.tensor([1.0, 0.0])
        >>> optimizer.step()  # a tenth of the norm of the weights, along the first axis
        >>> [round(value, 4) for value in weight.tolist()]
        [2.5, 4.0]
    """

    family = LAMB

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "maximize": maximize})
