"""A change of a `requires_grad` flag."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stepgraph.effects.access import slots_of
from stepgraph.effects.effect import Effect, Emission, Phrase, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::toggle", mutates_args=())
def _toggle(tensor: Tensor, flag: bool) -> None:
    """Set `tensor.requires_grad` to `flag`."""


without_result(_toggle)


def toggle(tensor: Tensor, flag: bool) -> None:
    """Set `tensor.requires_grad`. Updated: the flag."""
    tensor.requires_grad_(flag)


def _say(words: Words) -> Phrase:
    text = f"{words.slot('tensor')} = {words.argument('flag')}"
    return Phrase(text, before="requires_grad of ")


def _trace(tensor: Tensor, flag: bool) -> None:
    """Leave the operator, and set the flag of the fake tensor: later operators depend on it."""
    TOGGLE.op(tensor.detach(), flag)
    tensor.requires_grad_(flag)


def _set_flag(emission: Emission) -> Iterator[str]:
    (tensor,) = emission.slots("tensor")
    yield f"{tensor}.requires_grad_({emission.argument('flag')})"


TOGGLE = register(
    Effect(
        op=torch.ops.stepgraph.toggle.default,
        kind=Kind.TOGGLE,
        says=_say,
        reads=(),
        writes=(slots_of("flag", "tensor"),),
        values_read=(),
        region="waits",
        cuda_graph="tail",
        may_raise=False,
        moves={},
        launches=False,
        run=toggle,
        emit=_set_flag,
        rehearsal="repeat",
        short_window="skipped",
        trace=_trace,
    )
)
"""A change of `requires_grad`."""
