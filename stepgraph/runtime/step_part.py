"""`optimizer.step()` in parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch

from stepgraph.runtime.effects import run_step

Value = TypeVar("Value")


class PartOfStep:
    """Runs `optimizer.step()` for some of its parameters.

    While it runs, the param groups hold only those. What counts the calls of `step()` - learning
    rate schedules do - sees the last part alone.

    Args:
        optimizer: An optimizer in which no parameter's update looks at another parameter.
        places: Which parameters, by place among those of all groups.
        last: Whether it is the last part.
    """

    def __init__(self, optimizer: Any, places: Sequence[int], *, last: bool) -> None:
        self._optimizer, self.last = optimizer, last
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        ends = list(accumulate(sizes))
        self._chosen = [
            [place - (end - size) for place in places if end - size <= place < end]
            for size, end in zip(sizes, ends, strict=True)
        ]

    def __call__(self) -> None:
        """Update the parameters of this part."""
        groups = self._optimizer.param_groups
        whole = [group["params"] for group in groups]
        for i, group in enumerate(groups):
            group["params"] = self.of(i, group["params"])
        try:
            self._step()
        finally:
            for group, params in zip(groups, whole, strict=True):
                group["params"] = params

    def of(self, group: int, values: Sequence[Value]) -> list[Value]:
        """Return what belongs to this part of the values for all parameters of a group."""
        return [values[i] for i in self._chosen[group]]

    def _step(self) -> None:
        if self.last:
            run_step(self._optimizer)
        else:
            with torch.enable_grad():
                type(self._optimizer).step(self._optimizer)
