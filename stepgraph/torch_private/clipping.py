"""Torch's clipping functions, without the decorators on the names that users import."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from torch.nn.utils import clip_grad

from stepgraph.torch_private.thread_patch import ThreadPatch


def _cell_of(wrapper: Any) -> Any:
    """Return the cell that holds the function which `no_grad` wraps."""
    (cell,) = wrapper.__closure__
    return cell


_NORM, _VALUE = clip_grad.clip_grad_norm_, clip_grad.clip_grad_value_


def _copied(function: Any) -> Callable[..., Any]:
    """Return a new function with the same code, which a trace does not replace."""
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


clip_norm: Callable[..., Any] = _NORM.__wrapped__  # type: ignore[attr-defined]
"""`clip_grad_norm_` without the decorator that switches autograd off: a trace can inline it."""

clip_value: Callable[..., Any] = _VALUE.__wrapped__  # type: ignore[attr-defined]
"""`clip_grad_value_` in the same way."""

own_clip_norm, own_clip_value = _copied(clip_norm), _copied(clip_value)
"""The same for our own clipping, which is not replaced."""

scale_to_norm: Callable[..., Any] = clip_grad._clip_grads_with_norm_
"""The function with which `clip_grad_norm_` scales the gradients, given their norm."""

PATCH_SCALE_TO_NORM = ThreadPatch(clip_grad, "_clip_grads_with_norm_")
"""The location from which `clip_grad_norm_` reads `scale_to_norm`."""

PATCH_CLIP_VALUE = ThreadPatch(_cell_of(_VALUE), "cell_contents")
"""The location from which `clip_grad_value_` reads `clip_value`."""

PATCH_BACKWARD = ThreadPatch(torch.autograd, "backward")
"""The function that `Tensor.backward` calls."""


def _codes(*names: str) -> frozenset[CodeType]:
    """Return the code of functions of torch's module by name, without their decorators."""
    functions = (getattr(clip_grad, name, None) for name in names)
    inner = (getattr(function, "__wrapped__", function) for function in functions)
    return frozenset(f.__code__ for f in inner if isinstance(f, FunctionType))


NORM_CODES = _codes("_get_total_norm", "get_total_norm")
"""The code of the functions that compute a norm of gradients."""

CLIP_CODES = _codes(
    "clip_grad_norm_",
    "clip_grad_norm",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "_clip_grads_with_norm_",
)
"""The code of the functions that clip gradients."""
