"""The effects of a training step as operators, left in the graph by a trace, never replayed.

While a step is traced, `optimizer.step()`, `zero_grad()`, a store to `.grad` and their like become
calls of the operators below. They compute nothing. They hold the place of an effect in program
order, name the tensors it reads and, through `mutates_args`, the tensors it writes: the version
counters of the traced tensors advance, so that a backward through updated weights is refused as
in eager. Lowering replaces every marker by the real effect.

`subject` (an int) is a key into the table of the step's subjects: the user's optimizers,
schedulers, scalers, averaged models and lists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import has_side_effect


@torch.library.custom_op("stepgraph::first_grad", mutates_args=())
def first_grad(param: Tensor, value: Tensor) -> Tensor:
    """Return `value` laid out like `param`: what autograd stores in an empty `.grad`."""
    return torch.empty_like(param).copy_(value)


@first_grad.register_fake
def _(param: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(param, dtype=value.dtype, requires_grad=False)


@torch.library.custom_op("stepgraph::add_grad_", mutates_args=("grad",))
def add_grad_(grad: Tensor, value: Tensor) -> None:
    """Add `value` to a `.grad` that exists, in place."""


@torch.library.custom_op("stepgraph::set_grad", mutates_args=())
def set_grad(param: Tensor, grad: Tensor | None) -> None:
    """Store `grad` in `param.grad`."""


@torch.library.custom_op("stepgraph::toggle", mutates_args=())
def toggle(tensor: Tensor, flag: bool) -> None:
    """Set `tensor.requires_grad` to `flag`."""


@torch.library.custom_op("stepgraph::zero_grad", mutates_args=())
def zero_grad(params: list[Tensor], subject: int) -> None:
    """Set the `.grad` of `params`, parameters of an optimizer, to None."""


@torch.library.custom_op("stepgraph::step", mutates_args=("params",))
def step(params: list[Tensor], grads: list[Tensor], subject: int) -> None:
    """Run `optimizer.step()`: writes `params` and the optimizer's state, reads `grads`."""


@torch.library.custom_op("stepgraph::step_part", mutates_args=("params",))
def step_part(
    params: list[Tensor], grads: list[Tensor], subject: int, places: list[int], last: bool
) -> None:
    """Run `optimizer.step()` for some of its parameters, those at `places` among all.

    The parts of one step hold every parameter once; `last` is True for the one that comes last.
    """


@torch.library.custom_op("stepgraph::clipped_step", mutates_args=("params", "grads"))
def clipped_step(params: list[Tensor], grads: list[Tensor], factor: Tensor, subject: int) -> None:
    """Multiply `grads` by `factor`, `[]`, and run `optimizer.step()`."""


@torch.library.custom_op("stepgraph::lr_step", mutates_args=())
def lr_step(metric: Tensor | None, subject: int) -> None:
    """Run `scheduler.step()` or `scheduler.step(metric)`."""


@torch.library.custom_op("stepgraph::unscale", mutates_args=("grads",))
def unscale(grads: list[Tensor], subject: int, optimizer: int) -> None:
    """Run `scaler.unscale_(optimizer)`."""


@torch.library.custom_op("stepgraph::scaled_step", mutates_args=("params", "grads"))
def scaled_step(params: list[Tensor], grads: list[Tensor], subject: int, optimizer: int) -> None:
    """Run `scaler.step(optimizer)`: unscale if that has not been done, then step unless inf."""


@torch.library.custom_op("stepgraph::scale_update", mutates_args=("scale",))
def scale_update(scale: Tensor, subject: int) -> None:
    """Run `scaler.update()`."""


@torch.library.custom_op("stepgraph::ema", mutates_args=("averages",))
def ema(averages: list[Tensor], params: list[Tensor], buffers: list[Tensor], subject: int) -> None:
    """Run `averaged_model.update_parameters(model)`; `params` and `buffers` are the model's."""


@torch.library.custom_op("stepgraph::hyper", mutates_args=())
def hyper(subject: int, group: int, key: str) -> Tensor:
    """Return `param_groups[group][key]`, or another number of the subject: `[]` float64."""
    return torch.zeros((), dtype=torch.float64)


@hyper.register_fake
def _(subject: int, group: int, key: str) -> Tensor:
    return torch.empty((), dtype=torch.float64)


@torch.library.custom_op("stepgraph::set_hyper", mutates_args=())
def set_hyper(value: Tensor, subject: int, group: int, key: str) -> None:
    """Store the number in `value` in `param_groups[group][key]`."""


@torch.library.custom_op("stepgraph::check", mutates_args=())
def check(valid: Tensor) -> None:
    """Raise ValueError unless all of `valid`: a distribution was given a value it cannot take."""


@torch.library.custom_op("stepgraph::part", mutates_args=())
def part(index: int) -> None:
    """Say that a part of a split batch begins; flattening turns it into metadata of nodes."""


@torch.library.custom_op("stepgraph::log", mutates_args=())
def log(value: Tensor, subject: int, as_number: bool) -> None:
    """Append `value`, or the number in it, to a list of the user's."""


_WITHOUT_RESULT = (
    add_grad_,
    set_grad,
    toggle,
    zero_grad,
    step,
    step_part,
    clipped_step,
    lr_step,
    unscale,
    scaled_step,
    scale_update,
    ema,
    set_hyper,
    check,
    part,
    log,
)
for _marker in _WITHOUT_RESULT:
    _marker.register_fake(lambda *args, **kwargs: None)

OPS = torch.ops.stepgraph
"""The markers as they appear in graphs: `OPS.step.default` and so on."""

MARKERS = {
    getattr(OPS, name).default: name
    for name in (
        "first_grad",
        "add_grad_",
        "set_grad",
        "toggle",
        "zero_grad",
        "step",
        "step_part",
        "clipped_step",
        "lr_step",
        "unscale",
        "scaled_step",
        "scale_update",
        "ema",
        "hyper",
        "set_hyper",
        "check",
        "log",
    )
}
"""Operator of each marker to its name."""

has_side_effect(OPS.part)
has_side_effect(OPS.part.default)
for _operator, _name in MARKERS.items():
    has_side_effect(_operator)
    has_side_effect(getattr(OPS, _name))
