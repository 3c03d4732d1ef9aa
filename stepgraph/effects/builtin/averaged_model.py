"""`AveragedModel.update_parameters(model)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stepgraph.effects.access import object_state
from stepgraph.effects.effect import Effect, Emission, NotRecordable, RestoreObject, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::ema", mutates_args=("averages",))
def _ema(averages: list[Tensor], params: list[Tensor], buffers: list[Tensor], subject: int) -> None:
    """Run `averaged_model.update_parameters(model)`; `params` and `buffers` are the model's."""


without_result(_ema)

_EXPONENTIAL: Any = get_ema_multi_avg_fn()
_CODE = _EXPONENTIAL.__wrapped__.__code__


class UpdateAverage:
    """Runs `averaged.update_parameters(model)` for a model of given parameters and buffers.

    An exponential average of torch's own is one `_foreach_lerp_`, as there; whatever else is
    left to the method. Guards see to it that the tensors stay what they are.

    Args:
        averaged: The averaged model.
    """

    def __init__(self, averaged: Any) -> None:
        self._averaged = averaged
        self._params = list(averaged.parameters())
        self._buffers = list(averaged.module.buffers())
        self._devices = {param.device for param in self._params}

    def __call__(self, params: list[Tensor], buffers: list[Tensor]) -> None:
        """Update the averages.

        Args:
            params: The model's parameters, in the order of the average's; read.
            buffers: Its buffers; copied, or averaged where the average is told to.
        """
        decay, count = self._decay(), self._averaged.n_averaged
        if decay is None or not self._alike(params) or count.item() == 0:
            with torch.enable_grad():
                self._averaged.update_parameters(_Model(params, buffers))
            return
        torch._foreach_lerp_(self._params, params, 1 - decay)
        for mine, own in zip(self._buffers, buffers, strict=True):
            mine.copy_(own)
        count.add_(1)

    def _decay(self) -> float | None:
        """Return the decay of an exponential average of torch's own; None for another average."""
        averaged: Any = self._averaged
        if type(averaged) is not AveragedModel or "update_parameters" in vars(averaged):
            return None
        inner: Any = getattr(averaged.multi_avg_fn, "__wrapped__", None)
        if averaged.use_buffers or getattr(inner, "__code__", None) is not _CODE:
            return None
        decay: float = inner.__closure__[0].cell_contents
        return decay

    def _alike(self, params: list[Tensor]) -> bool:
        """Return whether all are real numbers on one device, and as many on both sides."""
        devices = {param.device for param in params}
        if len(params) != len(self._params) or devices != self._devices or len(devices) > 1:
            return False
        return all(map(Tensor.is_floating_point, self._params))


class _Model:
    """A model of given parameters and buffers, as an averaged model reads one."""

    def __init__(self, params: list[Tensor], buffers: list[Tensor]) -> None:
        self._params, self._buffers = params, buffers

    def parameters(self) -> Iterator[Tensor]:
        return iter(self._params)

    def buffers(self) -> Iterator[Tensor]:
        return iter(self._buffers)


def update_average(params: list[Tensor], buffers: list[Tensor], subject: Any) -> None:
    """Update an averaged model. Updated: its parameters, buffers and count."""
    UpdateAverage(subject)(params, buffers)


def _say(words: Words) -> str:
    return f"{words.label}: averages {words.count('params', 'param')}"


def _update(emission: Emission) -> Iterator[str]:
    update = emission.constant("average", UpdateAverage(emission.object("subject")))
    yield f"{update}({emission.argument('params')}, {emission.argument('buffers')})"


EMA = register(
    Effect(
        op=torch.ops.stepgraph.ema.default,
        kind=Kind.EMA,
        says=_say,
        reads=(object_state("state"),),
        writes=(object_state("state"),),
        region="splits",
        cuda_graph=NotRecordable("an averaged model's own code runs"),
        may_raise=True,
        moves=None,
        launches=True,
        run=update_average,
        emit=_update,
        rehearsal=RestoreObject("update_parameters"),
        short_window="runs",
    )
)
"""The update of an averaged model."""
