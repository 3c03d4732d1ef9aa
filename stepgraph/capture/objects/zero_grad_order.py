"""The order of updates and `zero_grad()` of an optimizer in the call that is traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepgraph import torch_private
from stepgraph.capture.options.call_options import CallOptions


@dataclass
class Counts:
    """The number of updates and of `zero_grad()` calls of an optimizer."""

    updates: int = 0
    clearings: int = 0


class ZeroGradOrder:
    """The updates and `zero_grad()` calls of an optimizer so far in the traced call.

    Dynamo may restart a trace; the counts of an abandoned trace are dropped.

    Attributes:
        parts: For each part of the call, the number of updates and of `zero_grad()` calls.
    """

    def __init__(self, options: CallOptions) -> None:
        self.options = options
        self.parts = [Counts()]
        self._trace: Any = None

    def enter(self, options: CallOptions) -> None:
        """Begin a part of the call, which has its own options."""
        self._trace = torch_private.current_trace()
        self.options = options
        first = options.part is None or options.part.index == 0
        self.parts = [*([] if first else self.parts), Counts()]

    def record_update(self) -> None:
        """Record that the optimizer has stepped, whether or not this call performs it."""
        self._now().updates += 1

    def may_clear(self) -> bool:
        """Return whether a `zero_grad()` at this point has an effect in this call."""
        now = self._now()
        now.clearings += 1
        return self.options.updates if now.updates else self.options.clears

    def _now(self) -> Counts:
        trace = torch_private.current_trace()
        if trace is not self._trace:
            self._trace, self.parts = trace, [Counts()]
        return self.parts[-1]
