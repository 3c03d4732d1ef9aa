"""A program: the callable that performs a captured step, given its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stepgraph import torch_private
from stepgraph.runtime.spans import Spans

_is_grad_enabled = torch.is_grad_enabled
_set_grad_enabled = torch_private.set_grad_enabled


class NeedsEager(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by a program, before anything ran, if this call must be eager; contains the reason."""


class Program:
    """A callable that performs one variant of a step.

    Autograd is off while it runs, and so is autocast, whose casts are part of the program. Both
    are restored afterwards, also when an operator raises: then parameters, gradients, buffers,
    optimizer state and logs have the values of program order at that operator.

    Args:
        function: The program's statements, as a function of its inputs.
        autocast_devices: Device types for which autocast was on when the step was captured.
        leaves: Positions of inputs from the batch for which a backward computes gradients.
        spans: The same function with a span for every node, used under a profiler.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        autocast_devices: tuple[str, ...] = (),
        leaves: tuple[int, ...] = (),
        spans: Spans | None = None,
    ) -> None:
        self.function = function
        self.leaves = leaves
        self.spans = spans
        self.autocast_devices = autocast_devices
        self.calls = 0

    def __call__(self, *inputs: Any) -> Any:
        """Perform the step and return its outputs."""
        for position in self.leaves:
            leaf = inputs[position]
            if torch_private.have_hooks((leaf,)):
                raise NeedsEager("hooks on a tensor or parameter")
            if not leaf.is_leaf:
                raise NeedsEager("an input with an autograd graph (grad_fn)")
        grad_mode = _is_grad_enabled()
        _set_grad_enabled(False)
        entered = _switch_off(self.autocast_devices) if self.autocast_devices else ()
        try:
            if self.spans is not None and torch_private.is_profiling():
                outputs = self.spans(*inputs)
            else:
                outputs = self.function(*inputs)
        finally:
            for device in entered:
                torch.set_autocast_enabled(device, True)
            _set_grad_enabled(grad_mode)
        self.calls += 1
        return outputs


def autocast_devices() -> tuple[str, ...]:
    """Return the device types for which autocast is on."""
    known = ("cpu", "cuda")
    return tuple(device for device in known if torch.is_autocast_enabled(device))


def _switch_off(devices: Sequence[str]) -> list[str]:
    """Switch autocast off; return the devices for which it was on."""
    entered = [device for device in devices if torch.is_autocast_enabled(device)]
    for device in entered:
        torch.set_autocast_enabled(device, False)
    return entered
