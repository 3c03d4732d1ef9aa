"""Markers for values that a trace must not use: a trace that reads one is refused."""

from __future__ import annotations

from typing import NoReturn


class Forbidden:
    """Something that a trace must not read or call.

    A trace that reaches one ends, and the step is refused for its reason.

    Args:
        reason: What the step does, in a few words.
        hint: A change with which the step can be captured.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        self.reason, self.hint = reason, hint

    def refuse(self) -> NoReturn:
        """End the trace: in code that a trace inlines, where the step must be refused.

        Raises:
            AssertionError: The code runs outside of a trace.
        """
        raise AssertionError(f"this code exists to be traced: {self.reason}")
