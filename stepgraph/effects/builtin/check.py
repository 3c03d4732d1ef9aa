"""The argument checks of `torch.distributions`."""

from __future__ import annotations

import torch
from torch import Tensor

from stepgraph.effects.effect import Effect, NotRecordable
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::check", mutates_args=())
def _check(valid: Tensor) -> None:
    """Raise ValueError unless all of `valid`: a distribution was given a value it cannot take."""


without_result(_check)


def check(valid: Tensor) -> None:
    """Raise as `torch.distributions` does when a value is outside of its constraint.

    Args:
        valid: `[...]`, bool.

    Raises:
        ValueError: One of them is False.
    """
    if not valid.all().item():
        raise ValueError("a parameter or sample of a distribution violates its constraint")


CHECK = register(
    Effect(
        op=torch.ops.stepgraph.check.default,
        kind=Kind.FORWARD,
        says=None,
        reads=(),
        writes=(),
        region="splits",
        cuda_graph=NotRecordable("values are checked on the host"),
        may_raise=True,
        moves=None,
        launches=False,
        run=check,
        rehearsal="repeat",
        short_window="skipped",
    )
)
"""A check that raises where a value of a distribution is outside of its constraint."""
