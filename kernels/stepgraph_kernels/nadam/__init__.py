"""NAdam: Adam with Nesterov momentum."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.nadam.kernel import nadam_prepare, nadam_update
from stepgraph_kernels.nadam.reference import nadam_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["NADAM", "nadam_reference_"]

_RULE = Rule(nadam_update, ("exp_avg", "exp_avg_sq"))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (
        group["lr"],
        *group["betas"],
        group["eps"],
        group["weight_decay"],
        group["momentum_decay"],
        float(group["decoupled_weight_decay"]),
    )


def _initial_state(param: Tensor, group: Group) -> State:
    counters = {"step": counter(param), "mu_product": counter(param, 1.0)}
    return counters | zeros_like(param, _RULE)


NADAM = Family(
    name="NAdam",
    prepare=nadam_prepare,
    hyper_names=(
        "lr",
        "beta1",
        "beta2",
        "eps",
        "weight_decay",
        "momentum_decay",
        "decoupled",
    ),
    coefficients=10,
    counters=("step", "mu_product"),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=nadam_reference_,
)
