"""The reasons why a step ran eagerly, counted, and reported according to `on_fallback`."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections import Counter

from stepgraph.capture import Refusal
from stepgraph.errors import CaptureError, ConfigurationError, VerificationError

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class VariantLimit(Refusal):
    """A step has as many variants as `STEPGRAPH_MAX_VARIANTS` allows."""


class Fallbacks:
    """Records refusals of one compiled step.

    Attributes:
        counts: How often each refusal occurred, in the order of their first occurrence.
        latest: The latest refusal, or None.
    """

    def __init__(self, step_name: str, on_fallback: str) -> None:
        self.counts: Counter[Refusal] = Counter()
        self.latest: Refusal | None = None
        self._step_name = step_name
        self._on_fallback = on_fallback
        self._warned: set[str] = set()

    def mismatch(self, where: str) -> None:
        """Record that the result of a new program differs from eager's.

        Raises:
            VerificationError: `on_fallback` is "error". The call has run, eagerly.
        """
        if self._on_fallback == "error":
            raise VerificationError(
                f"{self._step_name} is captured wrongly",
                at=where,
                found="results that differ from the eager step",
                why="the program was rehearsed before its first use and is discarded",
                hint='report it; on_fallback="warn" runs the step eagerly',
            )
        self.note(Refusal(f"differs from eager at {where}"))

    def count(self, refusal: Refusal) -> None:
        """Count a refusal without a warning or an error; it is stored without its frames."""
        kept = refusal.without_frames()
        self.counts[kept] += 1
        self.latest = kept

    def note(self, refusal: Refusal) -> None:
        """Count a refusal; warn once per reason, or raise, according to `on_fallback`.

        Raises:
            CaptureError: `on_fallback` is "error".
        """
        self.count(refusal)
        if self._on_fallback == "error":
            raise CaptureError(
                f"{self._step_name} cannot be captured",
                at=refusal.at,
                found=refusal.reason,
                why='on_fallback="error" forbids to run it eagerly',
                hint=refusal.hint,
            ) from refusal.__cause__
        if self._on_fallback == "warn" and refusal.reason not in self._warned:
            self._warned.add(refusal.reason)
            message = f"stepgraph runs {self._step_name} eagerly: {refusal}"
            warnings.warn(message, stacklevel=_stacklevel_of_caller())


def _stacklevel_of_caller() -> int:
    """Return the `stacklevel` of the user's line that called the step."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_internal(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def _is_internal(file: str) -> bool:
    return file.startswith((_PACKAGE, contextlib.__file__))


def options_not_applicable(step: str, refusal: Refusal) -> ConfigurationError:
    """Return the error for options without a capture that finds the objects they act on."""
    return ConfigurationError(
        f"the options of {step} cannot be applied",
        at=refusal.at,
        found=refusal.reason,
        why="without a capture the objects that they act on are unknown",
        hint=refusal.hint or "write in the step itself what the options do",
    )
