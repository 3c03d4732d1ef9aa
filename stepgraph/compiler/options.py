"""The options of `stepgraph.compile`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp import GradScaler

from stepgraph.capture import CallOptions, Microbatches
from stepgraph.errors import ConfigurationError
from stepgraph.lowering import Masters
from stepgraph.passes import DEFAULT, WITHOUT_GRADIENTS, FuseTail, Pipeline


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `stepgraph.compile`, checked."""

    accumulate: int = 1
    microbatches: int | Microbatches = 1
    precision: str | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    backend: str = "auto"
    keep_grads: bool = True
    verify: int = 0
    on_fallback: str = "warn"
    passes: Any = None

    def __post_init__(self) -> None:
        _choice("on_fallback", self.on_fallback, ("warn", "error", "silent"))
        _choice("backend", self.backend, ("auto", "eager", "inductor"))
        _choice("precision", self.precision, (None, "bf16-mixed", "16-mixed", "bf16-true"))
        _at_least("accumulate", self.accumulate, 1)
        _at_least("verify", self.verify, 0)
        _positive("clip_norm", self.clip_norm)
        _positive("clip_value", self.clip_value)
        _ = self.split
        self.pipeline()

    def given(self) -> dict[str, Any]:
        """Return the options that are not the default, as plain values."""
        fields = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        plain = (bool, int, float, str, type(None))
        return {
            name: value if isinstance(value, plain) else getattr(value, "__qualname__", repr(value))
            for name, value, default in fields
            if value != default
        }

    @property
    def split(self) -> Microbatches:
        """How the batch of a call is split.

        Raises:
            ConfigurationError: The option is not a number of parts.
        """
        given = self.microbatches
        return given if isinstance(given, Microbatches) else Microbatches(given)

    def call_options(self) -> CallOptions:
        """Return the options of every call, except for its position in the window.

        They contain a new scaler: every compiled step has its own loss scale.
        """
        return CallOptions(
            micro_batches=self.accumulate,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            autocast=_AUTOCAST.get(self.precision),
            dtype=torch.bfloat16 if self.precision == "bf16-true" else None,
            scaler=_scaler() if self.precision == "16-mixed" else None,
            split=self.split,
        )

    def masters(self) -> Masters | None:
        """Return the store of float32 copies for fused updates, or None."""
        return Masters() if self.precision == "bf16-true" else None

    def pipeline(self) -> Pipeline:
        """Return the passes to run."""
        default = DEFAULT if self.keep_grads else WITHOUT_GRADIENTS
        if self.backend == "inductor":
            default = default.then(FuseTail())
        if self.passes is None:
            return default
        if isinstance(self.passes, Pipeline):
            return self.passes
        made = self.passes(default) if callable(self.passes) else self.passes
        if isinstance(made, Pipeline):
            return made
        raise ConfigurationError(
            "stepgraph.compile: passes is not a pipeline",
            found=type(made).__name__,
            why="a pipeline verifies the step after every pass",
            hint="a Pipeline, or a function that receives the default one and returns one",
        )


_AUTOCAST: dict[str | None, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def _scaler() -> GradScaler:
    return GradScaler("cuda" if torch.cuda.is_available() else "cpu")


def _at_least(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigurationError(
            f"stepgraph.compile: {name} is not a number of calls",
            found=f"{name}={value!r}",
            hint=f"a whole number of at least {least}",
        )


def _positive(name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, int | float) and value > 0):
        raise ConfigurationError(
            f"stepgraph.compile: {name} is not a bound",
            found=f"{name}={value!r}",
            hint="a positive number, or None",
        )


def _choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(
            f"stepgraph.compile: unknown {name}",
            found=f"{name}={value!r}",
            hint="one of " + ", ".join(map(repr, allowed)),
        )
