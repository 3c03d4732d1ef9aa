"""Adafactor: second moments of a matrix from the means of its rows and of its columns."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph_kernels.adafactor.kernel import adafactor_prepare
from stepgraph_kernels.adafactor.reference import adafactor_reference_
from stepgraph_kernels.adafactor.update import AdafactorUpdate
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter

__all__ = ["ADAFACTOR", "AdafactorUpdate", "adafactor_reference_"]

# the states depend on the parameter, and the update knows them
_RULE = Rule(None, (), factored=True)


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], group["beta2_decay"], *group["eps"], group["d"], group["weight_decay"])


def _initial_state(param: Tensor, group: Group) -> State:
    state = {"step": counter(param)}
    if param.dim() < 2:
        return state | {"variance": torch.zeros_like(param)}
    rows, columns = (*param.shape[:-1], 1), (*param.shape[:-2], 1, param.shape[-1])
    return state | {"row_var": param.new_zeros(rows), "col_var": param.new_zeros(columns)}


ADAFACTOR = Family(
    name="Adafactor",
    prepare=adafactor_prepare,
    hyper_names=("lr", "beta2_decay", "eps1", "eps2", "d", "weight_decay"),
    coefficients=8,
    counters=("step",),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=adafactor_reference_,
)
