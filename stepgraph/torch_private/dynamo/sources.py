"""Sources: Dynamo's descriptions of the origin of a value."""

from __future__ import annotations

from typing import Any

from torch._dynamo.source import ConstantSource


def source_name(source: Any) -> str:
    """Return Dynamo's name of a source: a method until torch 2.11, a property since."""
    return str(source.name() if callable(source.name) else source.name)


def constant_source(name: str) -> Any:
    """Return a source for a symbol that is not an input."""
    return ConstantSource(name)
