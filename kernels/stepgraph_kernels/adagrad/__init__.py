"""Adagrad: a step for each element, by the sum of its squared gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph_kernels.adagrad.kernel import adagrad_prepare, adagrad_update
from stepgraph_kernels.adagrad.reference import adagrad_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter

__all__ = ["ADAGRAD", "adagrad_reference_"]

_RULE = Rule(adagrad_update, ("sum",))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], group["lr_decay"], group["eps"], group["weight_decay"])


def _initial_state(param: Tensor, group: Group) -> State:
    total = torch.full_like(param, group["initial_accumulator_value"])
    return {"step": counter(param), "sum": total}


ADAGRAD = Family(
    name="Adagrad",
    prepare=adagrad_prepare,
    hyper_names=("lr", "lr_decay", "eps", "weight_decay"),
    coefficients=3,
    counters=("step",),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=adagrad_reference_,
)
