"""Process state and inputs that forbid a capture or a replay.

Grad mode, dispatch modes, anomaly detection, hooks on saved tensors, hooks on tensors and modules.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stepgraph.torch_private import (
    all_modules_have_hooks,
    dispatch_modes,
    function_modes,
    has_saved_tensors_hooks,
    have_hooks,
    only_device_modes,
)

_DATA_PARALLEL = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
}
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_is_anomaly_enabled = torch.is_anomaly_enabled


class ReplayPreconditions:
    """Checks the process state that the guards of a variant do not cover, before a replay.

    Guards check grad mode and function modes; this class checks the rest of `entry_reason`, and
    hooks on tensors. It checks for hooks only if one was registered, on any object, since the last
    check: every registration in torch makes a `RemovableHandle` with a new number. To read two
    attributes of each tensor would cost more than all other checks of a call.

    Args:
        tensors: Leaves into which the step accumulates gradients.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._handles: int | None = None  # hooks registered in the process at the last check

    def may_replay(self) -> bool:
        """Return whether a replay would skip no hook and no mode."""
        if dispatch_modes() or _is_anomaly_enabled() or has_saved_tensors_hooks():
            return False
        return self._handles == RemovableHandle.next_id or self._is_without_hooks()

    def _is_without_hooks(self) -> bool:
        if have_hooks(self._tensors) or all_modules_have_hooks():
            return False
        self._handles = RemovableHandle.next_id
        return True


def entry_reason() -> str | None:
    """Return why the state of the process forbids replays and captures, or None."""
    if not torch.is_grad_enabled():
        return "called under no_grad or inference_mode"
    if dispatch_modes():
        return "called under a dispatch mode"
    if function_modes() and not only_device_modes():
        return "called under a function mode"
    if has_saved_tensors_hooks():
        return "called under hooks on saved tensors"
    if _is_anomaly_enabled():
        return "called under detect_anomaly"
    if all_modules_have_hooks():
        return "global module hooks are registered"
    return None


def tensor_reason(tensors: Iterable[Any]) -> str | None:
    """Return why the real inputs of a trace cannot be inputs of a program, or None."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if type(tensor) not in _PLAIN:
            return f"a tensor subclass among the inputs: {type(tensor).__name__}"
        if tensor.layout is not torch.strided:
            return "sparse gradients or tensors"
        if tensor.requires_grad and have_hooks((tensor,)):
            return "hooks on a tensor or parameter"
        if tensor.grad_fn is not None:
            return "an input with an autograd graph (grad_fn)"
    return None


def object_reason(value: Any) -> str | None:
    """Return why a step that uses `value` cannot be captured, or None.

    A replay would not advance the state of a `random.Random`. Data-parallel wrappers reduce
    gradients in hooks of the autograd engine, which are not traced.
    """
    if isinstance(value, random.Random):
        return "host randomness: draws from a random.Random inside the step"
    if not isinstance(value, nn.Module):
        return None
    names = {base.__name__ for base in type(value).__mro__} & _DATA_PARALLEL
    return f"{min(names)} reduces gradients in hooks that are not traced" if names else None
