"""RAdam: Adam with a rectified step while it warms up."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.radam.kernel import radam_prepare, radam_update
from stepgraph_kernels.radam.reference import radam_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["RADAM", "radam_reference_"]

_RULE = Rule(radam_update, ("exp_avg", "exp_avg_sq"))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    decoupled = float(group["decoupled_weight_decay"])
    return (group["lr"], *group["betas"], group["eps"], group["weight_decay"], decoupled)


def _initial_state(param: Tensor, group: Group) -> State:
    return {"step": counter(param)} | zeros_like(param, _RULE)


RADAM = Family(
    name="RAdam",
    prepare=radam_prepare,
    hyper_names=("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled"),
    coefficients=8,
    counters=("step",),
    rule=lambda group: _RULE,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=radam_reference_,
)
