"""`scheduler.step()` of a learning rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects.access import hyper_parameters
from stepgraph.effects.effect import Effect, Objection, RestoreObject, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::lr_step", mutates_args=())
def _lr_step(metric: Tensor | None, subject: int) -> None:
    """Run `scheduler.step()` or `scheduler.step(metric)`."""


without_result(_lr_step)


def run_lr_step(metric: Tensor | None, subject: Any) -> None:
    """Run a schedule's own `step()`. Updated: the schedule, its optimizer's `param_groups`."""
    with torch.enable_grad():
        if metric is None:
            subject.step()
        else:
            subject.step(metric)


def _say(words: Words) -> str:
    watched = words.argument("metric") is not None
    return f"{words.label} watching {words.value('metric')}" if watched else words.label


def _objects_to_split(node: Node) -> Objection | None:
    if LR_STEP.argument(node, "metric") is None:
        return None
    return Objection(
        "a schedule watches a value of the step",
        why="it would see that of the last part of the batch",
        hint="step it outside, with the loss that the step returns",
    )


LR_STEP = register(
    Effect(
        op=torch.ops.stepgraph.lr_step.default,
        kind=Kind.LR_STEP,
        says=_say,
        reads=(hyper_parameters(),),
        writes=(hyper_parameters(),),
        region="splits",
        cuda_graph="tail",
        may_raise=True,
        moves={},
        launches=False,
        run=run_lr_step,
        rehearsal=RestoreObject("step"),
        short_window="runs",
        objects_to_split=_objects_to_split,
    )
)
"""A step of a learning rate schedule."""
