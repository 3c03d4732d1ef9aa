"""Methods of compiled steps and explanations that packages on higher floors implement.

The methods belong to the compiler, which must not import these packages. `stepgraph/__init__.py`,
which is imported before any part of the package, registers the functions that implement them.
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
    """Measure the step of `probe`."""
    return _registered["profile"](probe, steps)


def to_html(explanation: Any, path: str | Path, profile: Any = None) -> None:
    """Write an explanation as a page, with a profile if there is one."""
    _registered["to_html"](explanation, path, profile)


def to_rich(thing: Any) -> Any:
    """Return an explanation or a profile as a Rich renderable."""
    return _registered["to_rich"](thing)
