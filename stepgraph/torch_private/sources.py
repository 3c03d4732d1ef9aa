"""Dynamo's descriptions of where a value comes from."""

from __future__ import annotations

from typing import Any


def source_name(source: Any) -> str:
    """Return Dynamo's spelling of a source: a method until torch 2.11, a property since."""
    return str(source.name() if callable(source.name) else source.name)
