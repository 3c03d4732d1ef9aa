"""What markers do at replay: the real methods of the user's objects, in program order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stepgraph.errors import VerificationError

PASSED: Mapping[str, tuple[str, ...]] = {
    "lr_step": ("metric",),
    "hyper": ("group", "key"),
    "set_hyper": ("value", "group", "key"),
}
"""Arguments, besides the subjects, that the function of each marker takes."""


def first_grad(param: Tensor, value: Tensor) -> Tensor:
    """Return a copy of `value` laid out like `param`."""
    return torch.empty_like(param, dtype=value.dtype).copy_(value)


def below_autograd(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return `operator` as autograd would run it: some kernels look at the grad mode."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
            return operator(*args, **kwargs)

    return call


def check(valid: Tensor) -> None:
    """Raise like `torch.distributions` when a value is outside of its constraint."""
    if not torch._is_all_true(valid):
        raise ValueError("a parameter or sample of a distribution violates its constraint")


def run_step(optimizer: Any) -> None:
    """Run the optimizer's own `step()`, hooks and scheduler bookkeeping included.

    Raises:
        VerificationError: It returned a value, which the captured step takes to be None.
    """
    with torch.enable_grad():
        returned = optimizer.step()
    if returned is not None:
        raise VerificationError(
            f"{type(optimizer).__name__}.step() returned a value, None when it was captured",
            found=repr(returned),
            why="the captured step would go on with None",
            hint="STEPGRAPH_DISABLE=1 runs the step eagerly",
        )


def run_lr_step(metric: Tensor | None, scheduler: Any) -> None:
    """Run `scheduler.step()`."""
    with torch.enable_grad():
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)


def run_unscale(scaler: Any, optimizer: Any) -> None:
    """Run `scaler.unscale_(optimizer)`."""
    with torch.enable_grad():
        scaler.unscale_(optimizer)


def run_scaled_step(scaler: Any, optimizer: Any) -> None:
    """Run `scaler.step(optimizer)`."""
    with torch.enable_grad():
        scaler.step(optimizer)


def run_scale_update(scaler: Any) -> None:
    """Run `scaler.update()`."""
    with torch.enable_grad():
        scaler.update()


def run_hyper(subject: Any, group: int, key: str) -> Tensor:
    """Return a hyper-parameter, a last learning rate or a loss scale: `[]` float64."""
    return torch.tensor(subject.read(group, key), dtype=torch.float64)


def run_set_hyper(value: Tensor, optimizer: Any, group: int, key: str) -> None:
    """Store a hyper-parameter."""
    optimizer.param_groups[group][key] = value.item()
