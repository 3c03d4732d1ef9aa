"""The status of an explained step: captured, eager, or not known yet."""

from __future__ import annotations

from typing import Literal

from stepgraph.compiler import Explanation

Status = Literal["good", "bad", "open"]


def status_of(explanation: Explanation) -> Status:
    """Return `good` if the step is captured, `bad` if it runs eagerly, `open` if not known yet."""
    if explanation.captured:
        return "good"
    return "bad" if explanation.fallback_reason else "open"
