"""`optimizer.zero_grad()`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects.access import gradients_of
from stepgraph.effects.effect import Effect, Emission, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::zero_grad", mutates_args=())
def _zero_grad(params: list[Tensor], subject: int) -> None:
    """Set the `.grad` of `params`, parameters of an optimizer, to None."""


without_result(_zero_grad)


def zero_grad(params: list[Tensor]) -> None:
    """Set the `.grad` of all `params` to None. Updated: their `.grad`."""
    for param in params:
        param.grad = None


def _say(words: Words) -> str:
    return f"{words.label}: {words.count('params', 'grad')} = None"


def _stored(node: Node) -> Iterator[tuple[Node, None]]:
    yield from ((param, None) for param in ZERO_GRAD.argument(node, "params"))


def _clear(emission: Emission) -> Iterator[str]:
    yield from (f"{param}.grad = None" for param in emission.slots("params"))


ZERO_GRAD = register(
    Effect(
        op=torch.ops.stepgraph.zero_grad.default,
        kind=Kind.ZERO_GRAD,
        says=_say,
        reads=(),
        writes=(gradients_of("params"),),
        values_read=(),
        stores=_stored,
        region="waits",
        cuda_graph="tail",
        may_raise=False,
        moves={},
        launches=False,
        run=zero_grad,
        emit=_clear,
        rehearsal="repeat",
        short_window="runs after an update",
    )
)
"""The clearing of all gradients of an optimizer."""
