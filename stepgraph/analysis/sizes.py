"""Sizes of fake tensors as numbers."""

from __future__ import annotations

from typing import Any


def hint_of(size: Any) -> int:
    """Return a size as a number; the one in the traced call if it is symbolic.

    A size that depends on values is unknown before the step runs, and counts as 0.
    """
    if isinstance(size, int):
        return size
    return int(getattr(size.node, "hint", None) or 0)
