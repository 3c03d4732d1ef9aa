"""A test whether a file is internal: not the user's."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_FOLDERS = (Path(torch.__file__).parent, Path(__file__).parents[1] / "capture")
_PREFIXES = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)


def is_internal(file: str) -> bool:
    """Return whether a file belongs to torch, or contains functions inlined for torch's methods."""
    return file.startswith(_PREFIXES)
