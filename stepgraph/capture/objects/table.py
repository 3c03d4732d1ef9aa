"""The table through which traced code reads tracked objects, and the functions to do so.

All stand-ins use the functions of this file. So the table has one name in every trace, in the
names of tensors and in the guards on them; guards stay valid at replay, when the stand-ins are
removed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepgraph.torch_private import assume_constant_result, module_source


class Table:
    """Namespace of tracked objects, `subject_0`, `subject_1` and so on."""


TABLE = Table()

TABLE_SOURCE = f"{module_source(__name__)}.TABLE"
"""Dynamo's name of the table."""


def entry_name(number: int) -> str:
    """Return the name in the table of the tracked object with this number."""
    return f"subject_{number}"


def tracked(name: str) -> Any:
    """Return the user's object with this name."""
    return getattr(TABLE, name)


def number_of(name: str) -> int:
    """Return the number in a name.

    Stand-ins store names, not numbers: an int that varies between traces becomes symbolic.
    """
    return int(name.removeprefix("subject_"))


def gradients_of(parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients that exist, in the order of `parameters`."""
    return [p.grad for p in parameters if p.grad is not None]


@assume_constant_result
def _record_update(name: str) -> None:
    """Record, during the trace, that an optimizer has stepped."""
    getattr(TABLE, name).order.record_update()


@assume_constant_result
def _may_clear(name: str) -> bool:
    """Return, during the trace, whether `zero_grad()` has an effect at this point."""
    return bool(getattr(TABLE, name).order.may_clear())


@assume_constant_result
def _clear_autocast_cache() -> None:
    """Clear autocast's cache, during the trace, so that changed weights are cast again."""
    torch.clear_autocast_cache()


# Dynamo stores the results of these functions in the globals of the step, under their names;
# `capture` removes names that begin with an underscore.
record_update, may_clear, clear_autocast_cache = _record_update, _may_clear, _clear_autocast_cache
