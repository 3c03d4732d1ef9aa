"""Muon: momentum, orthogonalised, for matrices of weights."""

from __future__ import annotations

from torch import Tensor

from stepgraph_kernels.muon.kernel import gather_prepare, gather_update, nesterov_gather_update
from stepgraph_kernels.muon.newton_schulz import newton_schulz
from stepgraph_kernels.muon.reference import muon_reference_
from stepgraph_kernels.muon.update import APPLY, MuonUpdate
from stepgraph_kernels.spec import Family, Group, Rule, Scalar, State, zeros_like

__all__ = ["APPLY", "MUON", "MuonUpdate", "muon_reference_", "newton_schulz"]


def _rule(group: Group) -> Rule:
    update = nesterov_gather_update if group["nesterov"] else gather_update
    return Rule(update, ("momentum_buffer",))


def _hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["momentum"],)


def _initial_state(param: Tensor, group: Group) -> State:
    return zeros_like(param, _rule(group))


MUON = Family(
    name="Muon",
    prepare=gather_prepare,
    hyper_names=("momentum",),
    coefficients=2,
    counters=(),
    rule=_rule,
    hyper=_hyper,
    initial_state=_initial_state,
    reference=muon_reference_,
)
