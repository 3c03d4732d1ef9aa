"""`GradScaler`: stand-ins for a trace, methods for an eager call, its constants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.amp import GradScaler
from typing_extensions import override

from stepgraph.capture.objects.base import TraceContext, TrackedObject
from stepgraph.capture.objects.table import (
    entry_name,
    gradients_of,
    number_of,
    record_update,
    tracked,
)
from stepgraph.capture.options.call_options import CallOptions, without_effect
from stepgraph.capture.options.current import updates
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.effects import OPS
from stepgraph.torch_private import scale_tensor

_FORBIDDEN_USE = Forbidden("uses GradScaler in a way that is not captured")

_hyper = OPS.hyper
_scale_update = OPS.scale_update
_scaled_step = OPS.scaled_step
_unscale = OPS.unscale


class TrackedScaler(TrackedObject):
    """A `GradScaler`.

    Attributes:
        enabled: Whether scaling is enabled.
        scale: Its scale, `[]`.
    """

    def __init__(self, value: GradScaler, name: str = "") -> None:
        super().__init__(value, name)
        self.enabled = value.is_enabled()
        self.scale = scale_tensor(value)
        if self.scale is None:  # not used yet: any value, because a trace computes nothing
            self.scale = torch.tensor(value.get_scale())

    @override
    def stand_ins(self, context: TraceContext) -> dict[str, Any]:
        if not self.enabled:
            return _disabled_stand_ins()
        return _stand_ins(entry_name(self.number), context)

    @override
    def eager_methods(
        self, options: CallOptions, updated: set[int]
    ) -> dict[str, Callable[..., Any]]:
        if options.updates or not self.enabled:
            return {}
        return {
            "step": _recording_only(self.value.step, updated),
            "unscale_": without_effect(self.value.unscale_),
            "update": without_effect(self.value.update),
        }

    @override
    def unchanged(self) -> bool:
        now = self.value
        return now.is_enabled() == self.enabled and scale_tensor(now) is self.scale

    @override
    def read(self, group: int, key: str) -> float:
        return float(self.value.get_scale())


def _recording_only(original: Callable[..., Any], updated: set[int]) -> Callable[..., None]:
    """Return a `step(optimizer)` that only records an update of the optimizer."""

    @functools.wraps(original)
    def step(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        updated.add(id(optimizer))

    return step


def _by_name(*methods: Callable[..., Any]) -> dict[str, Any]:
    return {method.__name__: method for method in methods}


def _disabled_stand_ins() -> dict[str, Any]:
    """Return the functions that a trace inlines for a `GradScaler(enabled=False)`."""

    def scale(outputs: Any) -> Any:
        return outputs

    def unscale_(optimizer: Any) -> None:
        pass

    def step(optimizer: Any) -> Any:
        return optimizer.step()

    def update(new_scale: Any = None) -> None:
        pass

    def get_scale() -> float:
        return 1.0

    return _by_name(scale, unscale_, step, update, get_scale)


def _stand_ins(name: str, context: TraceContext) -> dict[str, Any]:
    """Return the functions that a trace inlines for the methods of an enabled `GradScaler`.

    Args:
        name: The scaler's name in the table.
        context: The options of the call, and the numbers of the optimizers.
    """
    names = {key: entry_name(number) for key, number in context.optimizers.items()}
    windowed, clips = context.options.windowed, context.options.clips

    def scale(outputs: Any) -> Any:
        if not isinstance(outputs, torch.Tensor):
            _FORBIDDEN_USE.refuse()
        return outputs * tracked(name).scale.to(device=outputs.device, non_blocking=True)

    def unscale_(optimizer: Any) -> None:
        if not updates():
            return
        owner = names[id(optimizer)]
        with torch.no_grad():
            gradients = gradients_of(tracked(owner).parameters)
            _unscale(gradients, number_of(name), number_of(owner))

    def step(optimizer: Any) -> None:
        if clips:
            _FORBIDDEN_USE.refuse()
        owner = names[id(optimizer)]
        if windowed:
            record_update(owner)
        if not updates():
            return
        parameters = tracked(owner).parameters
        with torch.no_grad():
            detached = [p.detach() for p in parameters]
            _scaled_step(detached, gradients_of(parameters), number_of(name), number_of(owner))

    def update(new_scale: Any = None) -> None:
        if not updates():
            return
        if new_scale is not None:
            _FORBIDDEN_USE.refuse()
        _scale_update(tracked(name).scale, number_of(name))

    def get_scale() -> Any:
        return _hyper(number_of(name), 0, "scale").item()

    return _by_name(scale, unscale_, step, update, get_scale)
