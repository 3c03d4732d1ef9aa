"""The `STEPGRAPH_*` environment variables; no other file reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stepgraph.errors import ConfigurationError

_DISABLE = "STEPGRAPH_DISABLE"
_CUDA_GRAPHS = "STEPGRAPH_CUDA_GRAPHS"
_MAX_VARIANTS = "STEPGRAPH_MAX_VARIANTS"
_MAX_CAPTURE_FAILURES = "STEPGRAPH_MAX_CAPTURE_FAILURES"

_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off", ""), False),
}


@dataclass(frozen=True)
class Config:
    """The settings of a process.

    Attributes:
        disable: Run every step eagerly.
        cuda_graphs: Record the program of a compiled step as a CUDA graph where that is legal. Off
            by default: unlike regions and updates, a CUDA graph is not compared with eager first.
        max_variants: Number of variants of one compiled step. Beyond it, calls that match no
            variant run eagerly.
        max_capture_failures: Number of failed captures after which a compiled step runs eagerly
            without another attempt.

    Raises:
        ConfigurationError: A limit is below one.
    """

    disable: bool = False
    cuda_graphs: bool = False
    max_variants: int = 8
    max_capture_failures: int = 8

    def __post_init__(self) -> None:
        _at_least_one("max_variants", self.max_variants)
        _at_least_one("max_capture_failures", self.max_capture_failures)


def current() -> Config:
    """Return the settings of the current environment.

    Every call reads the environment again, so do not call it during a replay.

    Raises:
        ConfigurationError: A variable has an invalid value.

    Example:
        >>> current().max_variants
        8
    """
    return Config(
        disable=_flag(_DISABLE, Config.disable),
        cuda_graphs=_flag(_CUDA_GRAPHS, Config.cuda_graphs),
        max_variants=_count(_MAX_VARIANTS, Config.max_variants),
        max_capture_failures=_count(_MAX_CAPTURE_FAILURES, Config.max_capture_failures),
    )


def _flag(name: str, default: bool) -> bool:
    text = os.environ.get(name)
    if text is None:
        return default
    value = _FLAGS.get(text.strip().lower())
    if value is None:
        raise ConfigurationError(
            f"{name} is neither on nor off",
            at=f"the environment variable {name}",
            found=repr(text),
            why="a guess could compile a step that should run eagerly, or the reverse",
            hint=f"{name}=1 or {name}=0",
        )
    return value


def _count(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ConfigurationError(
            f"{name} is not a whole number of at least 1",
            at=f"the environment variable {name}",
            found=repr(text),
            why="it is a limit, counted from 1",
            hint=f"{name}={default}, the default",
        )
    return int(text)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigurationError(
            f"Config.{name} is below 1",
            at=f"the argument `{name}`",
            found=repr(value),
            why="it is a limit, counted from 1",
            hint="STEPGRAPH_DISABLE=1 runs every step eagerly",
        )
