"""What `stepgraph.compile` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepgraph.errors import ConfigurationError


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `stepgraph.compile`, checked."""

    accumulate: int = 1
    microbatches: int = 1
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
        for name, neutral in _NOT_YET.items():
            if getattr(self, name) != neutral:
                raise ConfigurationError(
                    f"stepgraph.compile: {name} is not implemented yet",
                    found=f"{name}={getattr(self, name)!r}",
                    why="running without it would change what the step means",
                    hint=f"leave {name} at {neutral!r}",
                )


_NOT_YET: dict[str, Any] = {
    "accumulate": 1,
    "microbatches": 1,
    "precision": None,
    "clip_norm": None,
    "clip_value": None,
    "verify": 0,
    "passes": None,
}


def _choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(
            f"stepgraph.compile: unknown {name}",
            found=f"{name}={value!r}",
            hint="one of " + ", ".join(map(repr, allowed)),
        )
