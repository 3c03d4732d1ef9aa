"""Workers of a `DataLoader` that live through epochs."""

from __future__ import annotations

from typing import Any


def has_live_workers(loader: Any) -> bool:
    """Return whether the next epoch of `loader` goes on with the workers of the last one."""
    return getattr(loader, "_iterator", None) is not None


def stop_workers(loader: Any) -> None:
    """Let the next epoch of `loader` start new workers."""
    loader._iterator = None
