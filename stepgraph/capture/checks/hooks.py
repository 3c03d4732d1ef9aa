"""Hooks: Python of the user's that a captured step would not call."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn.modules import module as nn_module

_GLOBAL_HOOKS = tuple(
    getattr(nn_module, name)
    for name in (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
)


def have_hooks(tensors: Iterable[Tensor]) -> bool:
    """Return whether autograd would call Python of the user's for one of `tensors`."""
    return any(t._backward_hooks or t._post_accumulate_grad_hooks for t in tensors)


def all_modules_have_hooks() -> bool:
    """Return whether hooks are registered for every module of the process."""
    return any(_GLOBAL_HOOKS)
