"""What happens to an optimizer, and how often, while a step is traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepgraph import torch_private
from stepgraph.capture.options.call_options import Terms


@dataclass
class Happened:
    """How often an optimizer was updated and cleared."""

    updates: int = 0
    clearings: int = 0


class Order:
    """What has happened to an optimizer so far in the call that is being traced.

    Dynamo may start a trace over; what it had seen until then does not count.

    Attributes:
        parts: For each part of the call, the number of its updates and of its clearings.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.parts = [Happened()]
        self._trace: Any = None

    def enter(self, terms: Terms) -> None:
        """A part of the call begins, on terms of its own."""
        self._trace = torch_private.current_trace()
        self.terms = terms
        first = terms.part is None or terms.part.index == 0
        self.parts = [*([] if first else self.parts), Happened()]

    def note_update(self) -> None:
        """The optimizer's update has come, whether or not it is the call to perform it."""
        self._now().updates += 1

    def may_clear(self) -> bool:
        """Return whether a `zero_grad()` that has come does something in this call."""
        now = self._now()
        now.clearings += 1
        return self.terms.updates if now.updates else self.terms.clears

    def _now(self) -> Happened:
        trace = torch_private.current_trace()
        if trace is not self._trace:
            self._trace, self.parts = trace, [Happened()]
        return self.parts[-1]
