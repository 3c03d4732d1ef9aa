"""`TrackedObject`: an object of the user's that a step acts on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepgraph.capture.objects.table import TABLE, entry_name
from stepgraph.capture.options.call_options import CallOptions

_numbers = itertools.count()


@dataclass(frozen=True)
class TraceContext:
    """What the stand-ins of an object may depend on.

    Attributes:
        options: The options of the call that is traced.
        scaler: The number of the scaler of the options, or None.
        optimizers: The numbers of all tracked optimizers, by the id of the optimizer.
    """

    options: CallOptions
    scaler: int | None = None
    optimizers: Mapping[int, int] = field(default_factory=dict)


class TrackedObject:
    """An object of the user's that a step acts on: what a trace sees of it, and when that is stale.

    A subclass is one file: the stand-ins for a trace, the methods for an eager call with options,
    and `unchanged`.

    Args:
        value: The object.
        name: What its author calls it, or empty.

    Attributes:
        value: The object.
        number: Its number: the argument `subject` of effects on it.
        name: What its author calls it, or empty.
    """

    def __init__(self, value: Any, name: str = "") -> None:
        self.value = value
        self.number = next(_numbers)
        self.name = name
        setattr(TABLE, entry_name(self.number), self)

    @property
    def label(self) -> str:
        """What people call it, for example `"Adam(d_opt)"`."""
        kind = type(self.value).__name__
        return f"{kind}({self.name})" if self.name else kind

    def forget(self) -> None:
        """Take it out of the table; traced programs that use it must be gone."""
        vars(TABLE).pop(entry_name(self.number), None)

    def stand_ins(self, context: TraceContext) -> dict[str, Any]:
        """Return the instance attributes that a trace sees in the place of the real ones."""
        raise NotImplementedError

    def eager_methods(
        self, options: CallOptions, updated: set[int]
    ) -> dict[str, Callable[..., Any]]:
        """Return the methods that the instance shows in an eager call with options.

        Args:
            options: The options of the call.
            updated: Ids of the optimizers that have been updated in the call. Extended.
        """
        return {}

    def unchanged(self) -> bool:
        """Return whether what a trace took as constant about the object still holds."""
        return True

    def may_rehearse(self) -> bool:
        """Return whether its methods may run once more: torch's own code, without hooks."""
        return type(self.value).__module__.startswith(("torch.optim.", "torch.amp.", "torch.cuda."))

    def may_write(self, owner: Any, name: str) -> bool:
        """Return whether `owner.name` may be stored to after all effects of the step have run."""
        return owner is not self.value

    def read(self, group: int, key: str) -> float:
        """Return a number of the object, now."""
        raise NotImplementedError
