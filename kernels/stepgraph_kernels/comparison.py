"""One update, by the kernels and by the reference in float64, from the same operands.

The tests run it in the interpreter, `make gpu` on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stepgraph_kernels.catalogue import update_class
from stepgraph_kernels.layouts import Layout
from stepgraph_kernels.spec import Family, GradientsAfter, Group, State, Target, Tuning

# float32: a dozen roundings of numbers near one. Low precision: a unit in the last place, which
# the interpreter needs because it truncates where a GPU rounds.
_RELATIVE = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
_ABSOLUTE = 4e-6
_POSITIVE = ("sq", "avg", "sum", "inf", "var", "variance")
_COARSE = 5e-4  # a bf16 rounding of an update by a few hundredths


@dataclass(frozen=True)
class Settings:
    """How to run the update; the defaults are a bare step.

    Attributes:
        step: Updates done before this one; with 0 the states are as a new optimizer's.
        max_norm: What to clip to, or None.
        scale: What the gradients were multiplied by, or None.
        grads: What becomes of the gradients.
        average_weight: Weight of the new parameter in the averages.
        tuning: Speed choices.
    """

    step: int = 1
    max_norm: float | None = None
    scale: float | None = None
    grads: GradientsAfter = "keep"
    average_weight: float = 0.1
    tuning: Tuning = field(default_factory=Tuning)


def make_target(
    family: Family,
    group: Group,
    layout: Layout,
    shape: Sequence[int],
    *,
    generator: torch.Generator,
    device: torch.device,
    settings: Settings,
) -> Target:
    """Draw one parameter with a gradient and the states of an optimizer that has run a while."""

    def draw(dtype: torch.dtype, factor: float = 1.0, shape: Sequence[int] = shape) -> Tensor:
        return (torch.randn(tuple(shape), generator=generator) * factor).to(device, dtype)

    param = draw(layout.param)
    state = family.initial_state(param, group)
    for name in state_names(family, state):
        values = draw(layout.state, 0.1, state[name].shape)
        if name.endswith(_POSITIVE) and not name.endswith(("exp_avg", "grad_avg")):
            values = values.abs() + 0.5
        state[name] = values if settings.step else state[name].to(layout.state)
    for name in family.counters[:1]:
        state[name].fill_(settings.step)
    return Target(
        param=param,
        grad=draw(layout.grad, settings.scale or 1.0),
        state=state,
        shadow=param.to(layout.shadow) if layout.shadow is not None else None,
        average=draw(torch.float32) if layout.averaged else None,
        name=f"{layout.name} {list(shape)}",
    )


def state_names(family: Family, state: State) -> list[str]:
    """The names in a state that are no counters."""
    return [name for name in state if name not in family.counters]


def worst_difference(
    family: Family, group: Group, targets: Sequence[Target], settings: Settings
) -> dict[str, float]:
    """Update the targets and return, for each tensor, its worst error over the tolerance.

    Args:
        family: The optimizer.
        group: Its hyper-parameters, for all targets.
        targets: Updated.
        settings: How to run.

    Returns:
        Name of the tensor to error over tolerance; all at most 1 if the kernels are right.
    """
    wanted = [_expected(family, group, target, targets, settings) for target in targets]
    update = update_class(family)(
        family,
        targets,
        [group],
        clip=settings.max_norm is not None,
        grads=settings.grads,
        average_weight=settings.average_weight,
        tuning=settings.tuning,
    )
    if settings.max_norm is not None:
        update.set_max_norm(settings.max_norm)
    device = targets[0].param.device
    scale = None if settings.scale is None else torch.tensor(settings.scale, device=device)
    update.launch(scale=scale)
    errors: dict[str, float] = {}
    for target, want in zip(targets, wanted, strict=True):
        rounded = _reads_rounded_states(family, group, target)
        for role, tensor in _tensors(target).items():
            coarse = rounded and role in ("param", "shadow", "average")
            relative = _RELATIVE[torch.bfloat16 if coarse else tensor.dtype]
            absolute = _COARSE if coarse else _ABSOLUTE
            errors[f"{role} of {target.name}"] = _error(tensor, want[role], relative, absolute)
    return errors


def _expected(
    family: Family, group: Group, target: Target, targets: Sequence[Target], settings: Settings
) -> dict[str, Tensor]:
    """The same update in float64 by the reference."""
    multiplier = 1.0 / (settings.scale or 1.0)
    if settings.max_norm is not None:
        squares = sum(float(t.grad.double().square().sum()) for t in targets)
        multiplier *= min(1.0, settings.max_norm / (squares**0.5 * multiplier + 1e-6))
    param = target.param.double()
    grad = target.grad.double() * multiplier
    state = {name: tensor.double() for name, tensor in target.state.items()}
    if settings.step == 0 and family.optional_counters:
        state = {}
    family.reference(param, grad, state, group)
    if family.optional_counters:
        state["step"] = torch.tensor(settings.step + 1.0, device=param.device, dtype=torch.float64)
    wanted = {"param": param, "shadow": param, **state}
    if target.average is not None:
        wanted["average"] = target.average.double().lerp(param, settings.average_weight)
    wanted["grad"] = {
        "keep": target.grad.double(),
        "zero": torch.zeros_like(grad),
        "clipped": grad,
    }[settings.grads]
    return wanted


def _tensors(target: Target) -> dict[str, Tensor]:
    found = {"param": target.param, "grad": target.grad}
    found |= target.state
    if target.shadow is not None:
        found["shadow"] = target.shadow
    if target.average is not None:
        found["average"] = target.average
    return found


def _reads_rounded_states(family: Family, group: Group, target: Target) -> bool:
    """A sweep after a measuring launch sees low-precision states as they were stored."""
    rule = family.rule(group)
    states = state_names(family, target.state)
    low = any(target.state[name].dtype != torch.float32 for name in states)
    return (rule.measure is not None or rule.factored) and low


def _error(got: Tensor, want: Tensor, relative: float, absolute: float) -> float:
    if got.numel() == 0:
        return 0.0
    tolerance = absolute + relative * want.abs()
    worst = ((got.double() - want).abs() / tolerance).max().item()
    return worst if worst == worst else float("inf")  # nan where a number was wanted
