"""What Dynamo inlines in the place of the methods of a `GradScaler`; see `traced.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stepgraph.capture.objects.stand_ins import (
    Opaque,
    gradients_of,
    note_update,
    number_of,
    subject_of,
)
from stepgraph.capture.options.call_options import Terms
from stepgraph.capture.options.current import updates
from stepgraph.ir.markers import OPS

_hyper = OPS.hyper
_scale_update = OPS.scale_update
_scaled_step = OPS.scaled_step
_unscale = OPS.unscale

REFUSE_SCALER = Opaque("uses GradScaler in a way that is not captured")


def _by_name(*methods: Callable[..., Any]) -> dict[str, Any]:
    return {method.__name__: method for method in methods}


def disabled_scaler_stand_ins() -> dict[str, Any]:
    """Return what replaces the methods of a `GradScaler(enabled=False)`."""

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


def scaler_stand_ins(number: int, terms: Terms, optimizers: dict[int, int]) -> dict[str, Any]:
    """Return what replaces the methods of an enabled `GradScaler`.

    Args:
        number: The scaler's place in the table.
        terms: The terms of the call.
        optimizers: Place in the table of each optimizer, by its id.
    """
    name = f"subject_{number}"
    places = {key: f"subject_{place}" for key, place in optimizers.items()}
    windowed, clips = terms.windowed, terms.clips

    def scale(outputs: Any) -> Any:
        if not isinstance(outputs, torch.Tensor):
            REFUSE_SCALER.reason  # noqa: B018
        return outputs * subject_of(name).scale.to(device=outputs.device, non_blocking=True)

    def unscale_(optimizer: Any) -> None:
        if not updates():
            return
        place = places[id(optimizer)]
        with torch.no_grad():
            gradients = gradients_of(subject_of(place).parameters)
            _unscale(gradients, number_of(name), number_of(place))

    def step(optimizer: Any) -> None:
        if clips:
            REFUSE_SCALER.reason  # noqa: B018
        place = places[id(optimizer)]
        if windowed:
            note_update(place)
        if not updates():
            return
        parameters = subject_of(place).parameters
        with torch.no_grad():
            detached = [p.detach() for p in parameters]
            _scaled_step(detached, gradients_of(parameters), number_of(name), number_of(place))

    def update(new_scale: Any = None) -> None:
        if not updates():
            return
        if new_scale is not None:
            REFUSE_SCALER.reason  # noqa: B018
        _scale_update(subject_of(name).scale, number_of(name))

    def get_scale() -> Any:
        return _hyper(number_of(name), 0, "scale").item()

    return _by_name(scale, unscale_, step, update, get_scale)
