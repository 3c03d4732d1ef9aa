"""A list or deque that a step appends to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override

from stepgraph.capture.objects.base import TrackedObject
from stepgraph.capture.objects.table import entry_name, number_of
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.effects import OPS

_FORBIDDEN_APPEND = Forbidden("appends something that is neither a tensor nor a number to a list")
_FORBIDDEN_READ = Forbidden("reads a list that the step appends to")

_log = OPS.log


class TrackedList(TrackedObject):
    """A list or deque that the step appends to.

    During a trace a `ListStandIn` replaces it in the variable, item or attribute that holds it.

    Args:
        value: The list.
        name: The user's name for it.
        holder: Reads and writes the variable, item or attribute that holds it.
    """

    def __init__(
        self, value: Any, name: str, holder: tuple[Callable[[], Any], Callable[[Any], None]]
    ) -> None:
        super().__init__(value, name)
        self.get, self.put = holder

    @override
    def may_rehearse(self) -> bool:
        return True

    @override
    def unchanged(self) -> bool:
        return self.get() is self.value


class ListStandIn:
    """Replaces, during a trace, a list that the step appends to."""

    def __init__(self, number: int) -> None:
        self.name = entry_name(number)

    def append(self, value: Any) -> None:
        """Record that the step appends one value."""
        if isinstance(value, torch.Tensor):
            _log(value, number_of(self.name), False)
        elif isinstance(value, float):
            _log(torch.scalar_tensor(value, dtype=torch.float64), number_of(self.name), True)
        elif isinstance(value, int) and not isinstance(value, bool):
            _log(torch.scalar_tensor(value, dtype=torch.int64), number_of(self.name), True)
        else:
            _FORBIDDEN_APPEND.refuse()

    def extend(self, values: Any) -> None:
        """Record that the step appends several values."""
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        _FORBIDDEN_READ.refuse()
        return 0

    def __getitem__(self, index: Any) -> Any:
        _FORBIDDEN_READ.refuse()

    def __iter__(self) -> Any:
        _FORBIDDEN_READ.refuse()


def is_growing(value: Any) -> bool:
    """Return whether `value` is a container that a stand-in can replace."""
    return type(value) in (list, deque)
