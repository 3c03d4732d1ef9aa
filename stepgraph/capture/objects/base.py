"""`TrackedObject`: base class for the user's objects that a step acts on."""

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
    """The inputs from which an object makes its stand-ins.

    Attributes:
        options: The options of the traced call.
        scaler: The number of the scaler in the options, or None.
        optimizers: The numbers of all tracked optimizers, by the id of the optimizer.
    """

    options: CallOptions
    scaler: int | None = None
    optimizers: Mapping[int, int] = field(default_factory=dict)


class TrackedObject:
    """An object of the user's that a step acts on.

    A subclass is one file: the stand-ins for a trace, the methods for an eager call with options,
    and `unchanged`, which checks what a trace took as constant.

    Args:
        value: The object.
        name: The user's name for it, or empty.

    Attributes:
        value: The object.
        number: Its number: the argument `subject` of effects on it.
        name: The user's name for it, or empty.
    """

    def __init__(self, value: Any, name: str = "") -> None:
        self.value = value
        self.number = next(_numbers)
        self.name = name
        setattr(TABLE, entry_name(self.number), self)

    @property
    def label(self) -> str:
        """Its name in messages and reports, for example `"Adam(d_opt)"`."""
        kind = type(self.value).__name__
        return f"{kind}({self.name})" if self.name else kind

    def forget(self) -> None:
        """Remove it from the table; no program that uses it may exist any more."""
        vars(TABLE).pop(entry_name(self.number), None)

    def stand_ins(self, context: TraceContext) -> dict[str, Any]:
        """Return the instance attributes that replace the real ones during a trace."""
        raise NotImplementedError

    def eager_methods(
        self, options: CallOptions, updated: set[int]
    ) -> dict[str, Callable[..., Any]]:
        """Return the methods that replace the instance's in an eager call with options.

        Args:
            options: The options of the call.
            updated: Ids of the optimizers that have been updated in the call. Extended.
        """
        return {}

    def unchanged(self) -> bool:
        """Return whether what a trace took as constant about the object still holds."""
        return True

    def may_rehearse(self) -> bool:
        """Return whether a rehearsal may call its methods: torch's own code, without hooks."""
        return type(self.value).__module__.startswith(("torch.optim.", "torch.amp.", "torch.cuda."))

    def may_write(self, owner: Any, name: str) -> bool:
        """Return whether a store to `owner.name` may be delayed until all effects have run."""
        return owner is not self.value

    def read(self, group: int, key: str) -> float:
        """Return the current value of a hyper-parameter of the object."""
        raise NotImplementedError
