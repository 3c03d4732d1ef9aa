"""C++ of our own beside the Python that calls it, compiled once."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

from stepgraph import torch_private


@functools.cache
def library(source: Path, *symbols: str) -> ModuleType | str:
    """Return a compiled extension, or why there is none; compiles in some seconds, once.

    Args:
        source: The C++.
        symbols: Functions of torch's libraries that it calls; see `torch_private.load_cpp`.
    """
    text = source.read_text(encoding="utf-8")
    try:
        return torch_private.load_cpp(text, symbols)
    except Exception as error:  # the boundary to a compiler: others can do the same
        return first_line(error)


def first_line(error: Exception) -> str:
    """Return what a compiler's error says, in a line."""
    cause = error.__cause__ or error
    kind = type(cause).__name__
    if kind == "InvalidCxxCompiler":
        return "no C++ compiler"
    text = str(cause).strip() or kind
    return text.splitlines()[0]
