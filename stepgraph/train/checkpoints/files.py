"""Checkpoint files: complete or absent, and safe to load."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepgraph.errors import CheckpointError

FORMAT = 1
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_TYPES = (torch.dtype, torch.device, torch.Size)
_DICTS = (dict, OrderedDict, Counter)


def write(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically: `path` is always the complete old file or the new one.

    Args:
        state: Tensors, numbers, strings, dicts, lists and tuples.
        path: The file; its folder is created.

    Raises:
        CheckpointError: `state` contains a value that cannot be loaded with `weights_only=True`.
            Nothing is written.
    """
    path = Path(path)
    _check(state, "checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint that `write` wrote; nothing in it is executed.

    Raises:
        CheckpointError: The file does not exist, or is not a complete checkpoint of stepgraph.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            "there is no such checkpoint", at=str(path), hint="a path that save_checkpoint wrote"
        )
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            "a checkpoint cannot be read",
            at=str(path),
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            why="it is damaged, or contains objects that only pickle can load",
            hint="an earlier checkpoint",
        ) from error
    if not isinstance(state, dict) or "stepgraph_format" not in state:
        raise CheckpointError(
            "a file is not a checkpoint of stepgraph's Trainer",
            at=str(path),
            found=f"keys {list(state)[:8]}" if isinstance(state, dict) else type(state).__name__,
            why="counters, optimizers and random states are missing",
            hint='module.load_state_dict(torch.load(path)["state_dict"]) takes weights only',
        )
    if state["stepgraph_format"] != FORMAT:
        raise CheckpointError(
            "a checkpoint has another format",
            at=str(path),
            found=f"format {state['stepgraph_format']}, this version reads {FORMAT}",
            hint="the version of stepgraph that wrote it",
        )
    return state


def remove(path: str | Path) -> None:
    """Remove a checkpoint, if it is there."""
    Path(path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a renaming to disk, on systems that support it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(value: Any, where: str) -> None:
    """Refuse values that `torch.load(weights_only=True)` would refuse, with their path."""
    if isinstance(value, (Tensor, *_TYPES)) or type(value) in _PLAIN:
        return
    if type(value) in _DICTS:
        for key, item in value.items():
            _check(key, f"{where}: a key")
            _check(item, f"{where}[{key!r}]")
        return
    if type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
        return
    raise CheckpointError(
        "a value in a checkpoint could not be loaded again",
        at=where,
        found=type(value).__name__,
        why="checkpoints are loaded with weights_only=True, which runs no code from a file",
        hint="tensors, numbers, strings, dicts, lists and tuples",
    )


def plain(value: Any) -> Any:
    """Return a state dict in types that a checkpoint may contain: subclasses become dicts."""
    if isinstance(value, dict) and type(value) not in (OrderedDict, Counter):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if type(value) is tuple:
        return tuple(plain(item) for item in value)
    return value
