"""A `GradScaler`: `unscale_(optimizer)`, `step(optimizer)` and `update()`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stepgraph.effects.access import hyper_parameters, object_state, update_of
from stepgraph.effects.effect import Effect, Emission, NotRecordable, RestoreObject, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::unscale", mutates_args=("grads",))
def _unscale(grads: list[Tensor], subject: int, optimizer: int) -> None:
    """Run `scaler.unscale_(optimizer)`."""


@torch.library.custom_op("stepgraph::scaled_step", mutates_args=("params", "grads"))
def _scaled_step(params: list[Tensor], grads: list[Tensor], subject: int, optimizer: int) -> None:
    """Run `scaler.step(optimizer)`: unscale if that has not been done, then step unless inf."""


@torch.library.custom_op("stepgraph::scale_update", mutates_args=("scale",))
def _scale_update(scale: Tensor, subject: int) -> None:
    """Run `scaler.update()`."""


without_result(_unscale, _scaled_step, _scale_update)

_OWN_CODE = NotRecordable("a loss scaler's own code runs")
_SCALE, _FOUND_INF = object_state("scale"), object_state("found_inf")


def run_unscale(subject: Any, optimizer: Any) -> None:
    """Run `scaler.unscale_(optimizer)`. Updated: the gradients, the scaler."""
    with torch.enable_grad():
        subject.unscale_(optimizer)


UNSCALE = register(
    Effect(
        op=torch.ops.stepgraph.unscale.default,
        kind=Kind.UNSCALE,
        says=lambda words: f"{words.label}: {words.count('grads', 'grad')} / scale",
        reads=(_SCALE, _FOUND_INF),
        writes=(_FOUND_INF,),
        region="splits",
        cuda_graph=_OWN_CODE,
        may_raise=True,
        moves=None,
        launches=True,
        run=run_unscale,
        rehearsal=RestoreObject("unscale_"),
        short_window="runs",
    )
)
"""The division of an optimizer's gradients by the loss scale, with a check that they are finite."""


def step_with_scaler(subject: Any, optimizer: Any) -> None:
    """Run `scaler.step(optimizer)`. Updated: the optimizer and its parameters, the scaler."""
    with torch.enable_grad():
        subject.step(optimizer)


def _say_step(words: Words) -> str:
    updates = f"{words.last_label}{words.barrier} updates {words.count('params', 'param')}"
    return f"{words.label}: {updates} unless a gradient is inf"


def _update(emission: Emission) -> Iterator[str]:
    update = emission.update("optimizer")
    if update is None:
        yield emission.call()
    else:
        scaler = emission.object_name("subject")
        yield f"{emission.constant('scaled', update.scaled)}({scaler})"


SCALED_STEP = register(
    Effect(
        op=torch.ops.stepgraph.scaled_step.default,
        kind=Kind.STEP,
        says=_say_step,
        reads=(_SCALE, _FOUND_INF, hyper_parameters("subject"), hyper_parameters("optimizer")),
        writes=(_FOUND_INF, update_of("optimizer")),
        update="conditional",
        region="splits",
        cuda_graph=_OWN_CODE,
        may_raise=True,
        moves=None,
        launches=True,
        run=step_with_scaler,
        emit=_update,
        rehearsal=RestoreObject("step"),
        short_window="runs",
    )
)
"""An optimizer's update that a scaler leaves out where a gradient is inf or nan."""


def run_scale_update(subject: Any) -> None:
    """Run `scaler.update()`. Updated: the scale and its growth counter."""
    with torch.enable_grad():
        subject.update()


SCALE_UPDATE = register(
    Effect(
        op=torch.ops.stepgraph.scale_update.default,
        kind=Kind.SCALE_UPDATE,
        says=lambda words: f"{words.label}: grows or halves the scale",
        reads=(_SCALE, _FOUND_INF, hyper_parameters()),
        writes=(_SCALE, _FOUND_INF, hyper_parameters()),  # `get_scale()` reads the latter
        region="splits",
        cuda_graph=_OWN_CODE,
        may_raise=True,
        moves=None,
        launches=True,
        run=run_scale_update,
        rehearsal=RestoreObject("update"),
        short_window="runs",
    )
)
"""The growth or the halving of the loss scale."""
