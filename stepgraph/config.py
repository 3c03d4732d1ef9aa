"""What a user can set from outside: the `STEPGRAPH_*` environment variables, read nowhere else."""

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
        disable: Run every step eagerly, as if it were not compiled.
        cuda_graphs: Record the program of a compiled step as a CUDA graph where that is legal. Off
            until that has run on a GPU: unlike regions and updates, a replay has no trial.
        max_variants: Variants that one compiled step may hold; further calls that match none of
            them run eagerly.
        max_capture_failures: Failed captures after which a compiled step stops trying.

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
    """Return the settings as the environment states them now.

    Read afresh each time, so that a change takes effect; keep it out of the path of a replay.

    Raises:
        ConfigurationError: A variable is set to something it cannot mean.

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
            why="guessing could compile a step that was meant to run eagerly, or the reverse",
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
            why="it is a limit that is counted up to",
            hint=f"{name}={default}, the default",
        )
    return int(text)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigurationError(
            f"Config.{name} is below 1",
            at=f"the argument `{name}`",
            found=repr(value),
            why="it is a limit that is counted up to",
            hint="STEPGRAPH_DISABLE=1 runs every step eagerly",
        )
