"""`CallOptions`: the options of `compile`, resolved for one call of a step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.amp import GradScaler
from torch.utils._pytree import tree_map

from stepgraph.capture.options.microbatches import UNSPLIT, Microbatches, Part


@dataclass(frozen=True)
class CallOptions:
    """How one call of a step differs from the step as written.

    A trace and an eager call apply the same options: the trace by its stand-ins, the eager call by
    methods replaced on the instances (`eager_call.py`).

    Attributes:
        micro_batches: Length of a window, in calls. Every backward is seeded with the inverse.
        clears: Whether `zero_grad()` before an update has an effect: in the first call of a window.
        updates: Whether updates, schedules, averages, clipping, and `zero_grad()` after an update
            have an effect: in the last call of a window.
        clip_norm: Norm to which an optimizer's gradients are clipped before its update.
        clip_value: Absolute value to which they are clipped.
        autocast: Dtype to which autocast casts, in everything but backward and updates.
        dtype: Dtype of every updated parameter; floating-point arguments are cast to it first.
        scaler: Scales the seed of every backward, and skips an update when a gradient is inf or
            nan. The caller calls its `update()`, after the last call of a window.
        split: How the batch of the call is split. Each part is a run of the step with its own
            options: `of`.
        part: The part that these options belong to; None for those of the whole call.
    """

    micro_batches: int = 1
    clears: bool = True
    updates: bool = True
    clip_norm: float | None = None
    clip_value: float | None = None
    autocast: torch.dtype | None = None
    dtype: torch.dtype | None = None
    scaler: GradScaler | None = None
    split: Microbatches = UNSPLIT
    part: Part | None = None

    def of(self, part: Part) -> CallOptions:
        """Return the options of a part: only the first may clear, only the last may update."""
        clears = self.clears and part.index == 0
        updates = self.updates and part.index == part.count - 1
        return replace(self, clears=clears, updates=updates, part=part)

    @property
    def is_default(self) -> bool:
        """Whether the step runs as written."""
        return self == DEFAULT

    @property
    def windowed(self) -> bool:
        """Whether the step runs more than once for each update."""
        return self.micro_batches > 1 or self.split.splits

    @property
    def divisor(self) -> int:
        """The number by which the seed of a backward is divided."""
        if self.part is None or not self.part.is_even:
            return self.micro_batches
        return self.micro_batches * self.part.count

    @property
    def weight(self) -> float:
        """The factor of the divided seed: the share of a part, if the parts differ in size."""
        if self.part is None or self.part.is_even:
            return 1.0
        return self.part.size / self.part.total

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped before an update."""
        return self.clip_norm is not None or self.clip_value is not None

    def cast(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call, floating-point tensors in the dtype of the parameters."""
        if self.dtype is None:
            return args, kwargs
        cast: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(self._cast, (args, kwargs))
        return cast

    def _cast(self, value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self.dtype) if is_float else value

    @contextlib.contextmanager
    def casting(self) -> Iterator[None]:
        """Scope of the whole call, with autocast on if the options require it."""
        if self.autocast is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            for device in _autocast_devices():
                stack.enter_context(torch.autocast(device, dtype=self.autocast))
            yield


DEFAULT = CallOptions()
"""The step runs as written."""


@contextlib.contextmanager
def autocast_off(options: CallOptions) -> Iterator[None]:
    """Scope in which the autocast of `options` is off: for a backward, for an update."""
    with contextlib.ExitStack() as stack:
        for device in _autocast_devices() if options.autocast else ():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def without_effect(original: Callable[..., Any]) -> Callable[..., None]:
    """Return a method that does nothing, for calls in which `original` must not run."""

    @functools.wraps(original)
    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    return nothing


def _autocast_devices() -> tuple[str, ...]:
    """Return the device types that autocast is switched on for."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
