"""Adam and AdamW: two moments and a bias correction, weight decay coupled or decoupled."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.adam.kernel import adam_prepare, adam_update, amsgrad_update
from stepgraph_kernels.adam.reference import adam_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["ADAM", "adam_reference_"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def _rule(group: Group) -> Rule:
    if group["amsgrad"]:
        return Rule(amsgrad_update, (*_MOMENTS, "max_exp_avg_sq"))
    return Rule(adam_update, _MOMENTS)


def _hyper(group: Group) -> tuple[Scalar, ...]:
    decoupled = float(group["decoupled_weight_decay"])
    return (group["lr"], *group["betas"], group["eps"], group["weight_decay"], decoupled)


def _initial_state(param: Tensor, group: Group) -> State:
    return {"step": counter(param)} | zeros_like(param, _rule(group))


ADAM = Family(
    name="Adam",
    prepare=adam_prepare,
    hyper_names=("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"),
    coefficients=8,
    counters=("step",),
    rule=_rule,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=adam_reference_,
)
