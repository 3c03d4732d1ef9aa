"""Marks for what a trace must not touch: meeting one refuses the step."""

from __future__ import annotations


class Forbidden:
    """Something that a trace must not read or call.

    Traced code reads `.reason` of one; the trace ends there, and the step is refused.

    Args:
        reason: What the step does, in a few words.
        hint: What would let the step be captured.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        self.reason, self.hint = reason, hint
