"""Lion: the sign of an interpolated momentum. torch has none, so the optimizer is here too."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from stepgraph_kernels.lion.kernel import lion_prepare, lion_update
from stepgraph_kernels.lion.reference import lion_reference_
from stepgraph_kernels.plain_optimizer import PlainOptimizer
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, zeros_like

__all__ = ["LION", "Lion", "lion_reference_"]

_RULE = Rule(lion_update, ("exp_avg",))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], *group["betas"], group["weight_decay"])


def _initial_state(param: Tensor, group: Group) -> State:
    return zeros_like(param, _RULE)


LION = Family(
    name="Lion",
    prepare=lion_prepare,
    hyper_names=("lr", "beta1", "beta2", "weight_decay"),
    coefficients=6,
    counters=(),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=lion_reference_,
)


class Lion(PlainOptimizer):
    """Lion (arXiv 2302.06675), in plain PyTorch; `fuse` gives it the kernel.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate, a third to a tenth of AdamW's.
        betas: Of the interpolation that is signed, and of the momentum that is kept.
        weight_decay: Decoupled, multiplied by `lr`.
        maximize: Ascend.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = Lion([weight], lr=0.5)
        >>> weight.grad = torch.tensor([3.0, -0.1])
        >>> optimizer.step()
        >>> weight.tolist()
        [0.5, -0.5]
    """

    family = LION

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        )
