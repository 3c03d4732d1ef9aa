"""Gradients: a first one, one that is added, and the store in a `.grad`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects.access import gradients_of
from stepgraph.effects.effect import Effect, Emission, InRegion, Phrase, Words
from stepgraph.effects.kind import Kind
from stepgraph.effects.registry import register, without_result


@torch.library.custom_op("stepgraph::first_grad", mutates_args=())
def _first_grad(param: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the strides of `param`: what autograd stores in an empty `.grad`."""
    return torch.empty_like(param).copy_(value)


@_first_grad.register_fake
def _(param: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(param, dtype=value.dtype, requires_grad=False)


@torch.library.custom_op("stepgraph::add_grad_", mutates_args=("grad",))
def _add_grad_(grad: Tensor, value: Tensor) -> None:
    """Add a gradient to a `.grad` that exists, in place."""


@torch.library.custom_op("stepgraph::set_grad", mutates_args=())
def _set_grad(param: Tensor, grad: Tensor | None) -> None:
    """Store `grad` in `param.grad`."""


without_result(_add_grad_, _set_grad)


def first_grad(param: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `value`, `[...]`, with the strides of `param`, `[...]`."""
    return torch.empty_like(param, dtype=value.dtype).copy_(value)


def _copy_or_take(emission: Emission) -> Iterator[str]:
    value = emission.argument("value")
    yield f"{emission.result} = {value if emission.takes_value else emission.call()}"


FIRST_GRAD = register(
    Effect(
        op=torch.ops.stepgraph.first_grad.default,
        kind=Kind.ACCUMULATE,
        says=lambda words: None,
        reads=(),
        writes=(),
        values_read=("value",),
        region="inside",
        in_region=InRegion(torch.ops.aten.clone.default, ("value",)),
        strides_of="param",
        cuda_graph="body",
        may_raise=False,
        removable=True,
        moves={"result": 2},
        launches=False,  # usually the gradient is the value itself, not a copy
        run=first_grad,
        emit=_copy_or_take,
        rehearsal="repeat",
        short_window="skipped",
        detaches=True,
    )
)
"""The value of a gradient that is stored in an empty `.grad`."""


def add_grad(grad: Tensor, value: Tensor) -> None:
    """Add `value`, `[...]`, to `grad`, `[...]`. Updated: `grad`."""
    grad.add_(value)


def _add(emission: Emission) -> Iterator[str]:
    yield f"{emission.argument('grad')}.add_({emission.argument('value')})"


ADD_GRAD = register(
    Effect(
        op=torch.ops.stepgraph.add_grad_.default,
        kind=Kind.ACCUMULATE,
        says=lambda words: Phrase(f"{words.written('grad')}.grad += ..."),
        reads=(),
        writes=(),
        region="inside",
        in_region=InRegion(torch.ops.aten.add_.Tensor, ("grad", "value")),
        cuda_graph="body",
        may_raise=False,
        moves={"grad": 2, "value": 1},
        launches=True,
        run=add_grad,
        emit=_add,
        rehearsal="repeat",
        short_window="skipped",
    )
)
"""A gradient added to the one that is there."""


def set_grad(param: Tensor, grad: Tensor | None) -> None:
    """Store a gradient, or None, in `param.grad`. Updated: `param.grad`."""
    param.grad = grad


def _kind(node: Node) -> Kind:
    """A None in a `.grad` clears it."""
    return Kind.ZERO_GRAD if SET_GRAD.argument(node, "grad") is None else Kind.ACCUMULATE


def _say_store(words: Words) -> Phrase:
    if words.argument("grad") is None:
        return Phrase(f"{words.slot('param')}.grad", after=" = None")
    return Phrase(f"{words.slot('param')}.grad = ...")


def _stored(node: Node) -> Iterator[tuple[Node, Node | None]]:
    yield SET_GRAD.argument(node, "param"), SET_GRAD.argument(node, "grad")


def _store(emission: Emission) -> Iterator[str]:
    (param,) = emission.slots("param")
    yield f"{param}.grad = {emission.argument('grad')}"


SET_GRAD = register(
    Effect(
        op=torch.ops.stepgraph.set_grad.default,
        kind=_kind,
        says=_say_store,
        reads=(),
        writes=(gradients_of("param"),),
        values_read=(),
        stores=_stored,
        region="waits",
        cuda_graph="tail",
        may_raise=False,
        moves={},
        launches=False,
        run=set_grad,
        emit=_store,
        rehearsal="repeat",
        short_window="skipped",
        detaches=True,
    )
)
"""The store of a gradient, or of None, in a `.grad`."""
