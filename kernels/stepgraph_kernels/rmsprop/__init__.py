"""RMSprop, centered or not, with or without momentum."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.rmsprop.kernel import (
    centered_momentum_update,
    centered_update,
    momentum_update,
    rmsprop_prepare,
    rmsprop_update,
)
from stepgraph_kernels.rmsprop.reference import rmsprop_reference_
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, counter, zeros_like

__all__ = ["RMSPROP", "rmsprop_reference_"]

_RULES = {  # (momentum, centered)
    (False, False): Rule(rmsprop_update, ("square_avg",)),
    (True, False): Rule(momentum_update, ("square_avg", "momentum_buffer")),
    (False, True): Rule(centered_update, ("square_avg", "grad_avg")),
    (True, True): Rule(centered_momentum_update, ("square_avg", "momentum_buffer", "grad_avg")),
}


def _rule(group: Group) -> Rule:
    return _RULES[group["momentum"] > 0, bool(group["centered"])]


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (
        group["lr"],
        group["alpha"],
        group["eps"],
        group["weight_decay"],
        group["momentum"],
    )


def _initial_state(param: Tensor, group: Group) -> State:
    return {"step": counter(param)} | zeros_like(param, _rule(group))


RMSPROP = Family(
    name="RMSprop",
    prepare=rmsprop_prepare,
    hyper_names=("lr", "alpha", "eps", "weight_decay", "momentum"),
    coefficients=6,
    counters=("step",),
    rule=_rule,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=rmsprop_reference_,
)
