"""Hooks: Python of the user's that a captured step would not call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.utils.hooks import RemovableHandle


def registrations() -> int:
    """Return a number that grows whenever a hook is registered on anything.

    All of torch's ways to register one hand out a `RemovableHandle` with a number of its own.
    """
    return RemovableHandle.next_id


def has_hooks(tensors: Iterable[Tensor]) -> bool:
    """Return whether autograd would call Python of the user's for one of `tensors`."""
    return any(t._backward_hooks or t._post_accumulate_grad_hooks for t in tensors)


class Unhooked:
    """Tells whether tensors are still without hooks.

    It looks at them only if a hook has been registered since it looked last: two attributes of
    each tensor cost more than all other checks of a call.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._looked_at: int | None = None

    def __call__(self) -> bool:
        """Return whether none of them has a hook."""
        now = registrations()
        if self._looked_at != now:
            if has_hooks(self._tensors):
                return False
            self._looked_at = now
        return True
