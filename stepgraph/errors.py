"""The exceptions of stepgraph, one class per kind of error.

Every message has the same five parts in the same order: what, at, found, why, try.
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigurationError",
    "GuardError",
    "StepgraphError",
    "VerificationError",
    "VerifyError",
]


class StepgraphError(Exception):
    """Base class of all exceptions that stepgraph raises itself.

    Args:
        what: The error, in one line.
        at: The argument, the tensor, or the user's file and line.
        found: The value that caused the error.
        why: The reason why this value is an error.
        hint: A change that avoids the error; printed after `try`.
    """

    def __init__(
        self,
        what: str,
        *,
        at: str | None = None,
        found: str | None = None,
        why: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.at, self.found, self.why, self.hint = what, at, found, why, hint
        details = {"at": at, "found": found, "why": why, "try": hint}
        lines = [what, *(f"  {k:<6} {v}" for k, v in details.items() if v is not None)]
        super().__init__("\n".join(lines))


class CaptureError(StepgraphError):
    """A step cannot be captured, and `on_fallback="error"` does not allow an eager call."""


class GuardError(StepgraphError):
    """A call matches no variant, and the limit of variants is reached."""


class VerificationError(StepgraphError):
    """The captured step and the eager step computed different values."""


class VerifyError(StepgraphError):
    """A step graph is malformed. After a pass, this is a bug in that pass."""


class ConfigurationError(StepgraphError, ValueError):
    """An argument is invalid, or arguments contradict each other."""


class CheckpointError(StepgraphError):
    """A checkpoint is incomplete, damaged, or does not fit the objects it is loaded into."""
