"""SGD, with or without momentum."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.sgd.kernel import (
    momentum_update,
    nesterov_update,
    sgd_prepare,
    sgd_update,
)
from stepgraph_kernels.sgd.reference import sgd_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["SGD", "sgd_reference_"]


def _rule(group: Group) -> Rule:
    if group["momentum"] == 0:
        return Rule(sgd_update, ())
    update = nesterov_update if group["nesterov"] else momentum_update
    return Rule(update, ("momentum_buffer",))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], group["momentum"], group["dampening"], group["weight_decay"])


def _initial_state(param: Tensor, group: Group) -> State:
    return {"step": counter(param)} | zeros_like(param, _rule(group))


SGD = Family(
    name="SGD",
    prepare=sgd_prepare,
    hyper_names=("lr", "momentum", "dampening", "weight_decay"),
    coefficients=5,
    counters=("step",),  # ours: torch tells the first step by the missing buffer
    rule=_rule,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=sgd_reference_,
    optional_counters=True,
)
