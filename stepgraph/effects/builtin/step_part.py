"""`optimizer.step()` in parts: an early update runs some parameters at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from stepgraph.effects.builtin.step import STEP, run_step
from stepgraph.effects.effect import Emission
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::step_part", mutates_args=("params",))
def _step_part(
    params: list[Tensor], grads: list[Tensor], subject: int, places: list[int], last: bool
) -> None:
    """Run `optimizer.step()` for some of its parameters, those at `places` among all.

    The parts of one step hold every parameter once; `last` is True for the one that comes last.
    """


without_result(_step_part)

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


def run_part(subject: Any, places: Sequence[int], last: bool) -> None:
    """Update the parameters at `places` among all of an optimizer."""
    PartOfStep(subject, places, last=last)()


def _update(emission: Emission) -> Iterator[str]:
    places, last = emission.raw("places"), emission.raw("last")
    update = emission.update("subject")
    part: Callable[[], None]
    if update is None:
        part = PartOfStep(emission.object("subject"), places, last=last)
    else:
        part = update.part(places, last=last)
    yield f"{emission.constant('update', part)}()"


STEP_PART = register(
    replace(
        STEP,
        op=torch.ops.stepgraph.step_part.default,
        may_raise=False,  # a part was made of a step that may be divided
        run=run_part,
        emit=_update,
    )
)
"""A part of an optimizer's update."""
