"""Hyper-parameters that a step reads, or sets by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects.access import hyper_parameters
from stepgraph.effects.effect import Effect, NotRecordable, Objection, RestoreObject, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::hyper", mutates_args=())
def _hyper(subject: int, group: int, key: str) -> Tensor:
    """Return `param_groups[group][key]`, or another number of the subject: `[]` float64."""
    return torch.zeros((), dtype=torch.float64)


@_hyper.register_fake
def _(subject: int, group: int, key: str) -> Tensor:
    return torch.empty((), dtype=torch.float64)


@torch.library.custom_op("stepgraph::set_hyper", mutates_args=())
def _set_hyper(value: Tensor, subject: int, group: int, key: str) -> None:
    """Store the number in `value` in `param_groups[group][key]`."""


without_result(_set_hyper)


def run_hyper(tracked: Any, group: int, key: str) -> Tensor:
    """Return a hyper-parameter, a last learning rate or a loss scale: `[]` float64."""
    return torch.tensor(tracked.read(group, key), dtype=torch.float64)


def run_set_hyper(value: Tensor, subject: Any, group: int, key: str) -> None:
    """Store a hyper-parameter. Updated: the optimizer's `param_groups`."""
    subject.param_groups[group][key] = value.item()


def _say(words: Words) -> str:
    return f"reads {words.argument('key')} of {words.label}"


HYPER = register(
    Effect(
        op=torch.ops.stepgraph.hyper.default,
        kind=Kind.LOG,
        says=_say,
        reads=(hyper_parameters(),),
        writes=(),
        region="before",
        cuda_graph="tail",
        may_raise=False,
        removable=True,
        moves={},
        launches=False,
        run=run_hyper,
        rehearsal="repeat",
        short_window="skipped",
    )
)
"""A number of an optimizer, a schedule or a scaler, as it is when the step gets there."""


def _say_set(words: Words) -> str:
    return f"{words.argument('key')} of {words.label} = {words.value('value')}"


def _objects_to_split(node: Node) -> Objection:
    return Objection(
        "the step sets a hyper-parameter",
        why="it would set it once for each part of the batch",
        hint="a schedule, or set it outside of the step",
    )


SET_HYPER = register(
    Effect(
        op=torch.ops.stepgraph.set_hyper.default,
        kind=Kind.LR_STEP,
        says=_say_set,
        reads=(hyper_parameters(),),
        writes=(hyper_parameters(),),
        region="splits",
        cuda_graph=NotRecordable("a hyper-parameter is computed in the step"),
        may_raise=True,
        moves={},
        launches=False,
        run=run_set_hyper,
        rehearsal=RestoreObject(None),
        short_window="skipped",
        objects_to_split=_objects_to_split,
    )
)
"""A hyper-parameter that the step stores in `param_groups`."""
