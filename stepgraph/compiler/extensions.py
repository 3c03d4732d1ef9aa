"""What higher floors add to compiled steps and explanations: measuring them and drawing them.

Imports only go down, and these methods are the compiler's. `stepgraph/__init__.py`, which is
imported before any part of the package, registers the functions behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_registered: dict[str, Callable[..., Any]] = {}


def register(**functions: Callable[..., Any]) -> None:
    """Register `profile(probe, steps)`, `to_html(explanation, path, profile)`, `to_rich(thing)`."""
    _registered.update(functions)


def profile(probe: Any, steps: int) -> Any:
    """Measure what `probe` runs."""
    return _registered["profile"](probe, steps)


def to_html(explanation: Any, path: str | Path, profile: Any = None) -> None:
    """Write an explanation as a page, with a profile if there is one."""
    _registered["to_html"](explanation, path, profile)


def to_rich(thing: Any) -> Any:
    """Return what a terminal shows of an explanation or a profile."""
    return _registered["to_rich"](thing)
