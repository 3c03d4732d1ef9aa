"""Adamax: Adam with the infinity norm."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.adamax.kernel import adamax_prepare, adamax_update
from stepgraph_kernels.adamax.reference import adamax_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["ADAMAX", "adamax_reference_"]

_RULE = Rule(adamax_update, ("exp_avg", "exp_inf"))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], *group["betas"], group["eps"], group["weight_decay"])


def _initial_state(param: Tensor, group: Group) -> State:
    return {"step": counter(param)} | zeros_like(param, _RULE)


ADAMAX = Family(
    name="Adamax",
    prepare=adamax_prepare,
    hyper_names=("lr", "beta1", "beta2", "eps", "weight_decay"),
    coefficients=5,
    counters=("step",),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=adamax_reference_,
)
