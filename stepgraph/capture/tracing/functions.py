"""Functions of torch that Dynamo cannot trace, and the functions that replace them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from stepgraph.capture.objects.optimizer import zero_grad_of_base
from stepgraph.effects import OPS
from stepgraph.torch_private import DependentConstraint

_check = OPS.check


def _is_all_true(valid: Tensor) -> bool:
    """Trace the argument checks of `torch.distributions`, so that a replay raises as eager does."""
    _check(valid)
    return True


def _is_dependent(constraint: Any) -> bool:
    """Trace `torch.distributions.constraints.is_dependent`, which Dynamo skips."""
    return isinstance(constraint, DependentConstraint)


REPLACED_FUNCTIONS = (
    (torch, "_is_all_true", _is_all_true),
    (constraints, "is_dependent", _is_dependent),
    (torch.optim.Optimizer, "zero_grad", zero_grad_of_base),
)
"""`(owner, name, replacement)` of each, in effect during a trace."""
