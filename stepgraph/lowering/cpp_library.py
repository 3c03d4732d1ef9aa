"""Compilation of C++ sources of this package, once for each."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

from stepgraph import torch_private


@functools.cache
def library(source: Path, *symbols: str) -> ModuleType | str:
    """Return a compiled extension, or why there is none; the first call takes some seconds.

    Args:
        source: The C++ file.
        symbols: Functions of torch's libraries that it calls; see `torch_private.load_cpp`.
    """
    text = source.read_text(encoding="utf-8")
    try:
        return torch_private.load_cpp(text, symbols)
    except Exception as error:  # the boundary to a compiler: other kernels are used instead
        return first_line(error)


def is_missing_compiler(error: Exception) -> bool:
    """Return whether an error of torch's says that there is no C++ compiler."""
    return type(error.__cause__ or error).__name__ == "InvalidCxxCompiler"


def first_line(error: Exception) -> str:
    """Return the first relevant line of a compiler's error."""
    cause = error.__cause__ or error
    if is_missing_compiler(error):
        return "no C++ compiler"
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0]
