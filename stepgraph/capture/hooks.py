"""Hooks: Python of the user's that a captured step would not call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle

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


class Unhooked:
    """Tells whether tensors, and modules in general, are still without hooks.

    It looks only if a hook has been registered, on anything, since it looked last: all of torch's
    ways to register one hand out a `RemovableHandle` with a number of its own. Two attributes of
    each tensor would cost more than all other checks of a call.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._looked_at: int | None = None

    def __call__(self) -> bool:
        """Return whether none of them has a hook."""
        if self._looked_at == RemovableHandle.next_id:
            return True
        if have_hooks(self._tensors) or all_modules_have_hooks():
            return False
        self._looked_at = RemovableHandle.next_id
        return True
