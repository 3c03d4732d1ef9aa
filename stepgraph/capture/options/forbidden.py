"""Markers for values that a trace must not use: a trace that reads one is refused."""

from __future__ import annotations


class Forbidden:
    """Something that a trace must not read or call.

    When traced code reads its `.reason`, the trace ends and the step is refused.

    Args:
        reason: What the step does, in a few words.
        hint: A change with which the step can be captured.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        self.reason, self.hint = reason, hint
