"""`optimizer.step()`, alone and with the clipping of its gradients inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepgraph.effects.access import update_of
from stepgraph.effects.effect import Effect, Emission, RestoreObject, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result
from stepgraph.errors import VerificationError


@torch.library.custom_op("stepgraph::step", mutates_args=("params",))
def _step(params: list[Tensor], grads: list[Tensor], subject: int) -> None:
    """Run `optimizer.step()`: writes `params` and the optimizer's state, reads `grads`."""


@torch.library.custom_op("stepgraph::clipped_step", mutates_args=("params", "grads"))
def _clipped_step(params: list[Tensor], grads: list[Tensor], factor: Tensor, subject: int) -> None:
    """Multiply `grads` by `factor`, `[]`, and run `optimizer.step()`."""


without_result(_step, _clipped_step)


def run_step(subject: Any) -> None:
    """Run an optimizer's own `step()`, with its hooks and what a schedule counts.

    Raises:
        VerificationError: It returned a value, which the captured step takes to be None.
    """
    with torch.enable_grad():
        returned = subject.step()
    if returned is not None:
        raise VerificationError(
            f"{type(subject).__name__}.step() returned a value, None when it was captured",
            found=repr(returned),
            why="the captured step would go on with None",
            hint="STEPGRAPH_DISABLE=1 runs the step eagerly",
        )


def _say(words: Words) -> str:
    return f"{words.label}{words.barrier}: updates {words.count('params', 'param')}"


def _update(emission: Emission) -> Iterator[str]:
    update = emission.update("subject")
    if update is None:
        yield emission.call()
    else:
        yield f"{emission.constant('update', update)}()"


STEP = register(
    Effect(
        op=torch.ops.stepgraph.step.default,
        kind=Kind.STEP,
        says=_say,
        reads=(),
        writes=(update_of("subject"),),
        update="always",
        region="splits",
        cuda_graph="body",
        may_raise=True,
        moves={"params": 2, "grads": 1},
        launches=True,
        run=run_step,
        emit=_update,
        rehearsal=RestoreObject("step"),
        short_window="runs",
    )
)
"""An optimizer's update."""


def _say_clipped(words: Words) -> str:
    return f"{words.label}{words.barrier}: clips and updates {words.count('params', 'param')}"


def _multiply(emission: Emission) -> Iterator[str]:
    scale = emission.constant("foreach_mul_", torch._foreach_mul_)
    yield f"{scale}({emission.argument('grads')}, {emission.argument('factor')})"


def _clip_and_update(emission: Emission) -> Iterator[str]:
    update = emission.update("subject")
    if update is None:
        yield from _multiply(emission)
        yield emission.call()
    else:
        clipped = emission.constant("update", update)
        yield f"{clipped}.clipped({emission.argument('factor')})"


CLIPPED_STEP = register(
    replace(
        STEP,
        op=torch.ops.stepgraph.clipped_step.default,
        says=_say_clipped,
        emit=_clip_and_update,
        prepare=_multiply,
    )
)
"""An optimizer's update that multiplies its gradients by a factor first."""
