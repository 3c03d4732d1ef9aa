"""Every exception stepgraph raises on purpose, one class per kind of mistake.

A message answers five questions in a fixed order - what, at, found, why, try - so that it reads
the same wherever it is raised.
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
    """Base class: `except StepgraphError` catches whatever this library raises on purpose.

    Args:
        what: What went wrong, one line.
        at: Where: the argument, the tensor, or the user's file and line.
        found: What was there instead.
        why: Why that matters.
        hint: What to try; printed after `try`.
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
    """A step cannot be captured, and `on_fallback="error"` forbids to run it eagerly."""


class GuardError(StepgraphError):
    """A call matches no variant, and no further variant may be captured."""


class VerificationError(StepgraphError):
    """The captured step and the eager step computed different values."""


class VerifyError(StepgraphError):
    """A step graph is malformed; raised after a pass, it is a bug in that pass."""


class ConfigurationError(StepgraphError, ValueError):
    """An argument or a combination of arguments that has no meaning."""


class CheckpointError(StepgraphError):
    """A checkpoint is incomplete, damaged, or belongs to something else."""
