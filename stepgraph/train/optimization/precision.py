"""Precision of a training: casts, autocast and the loss scale."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._pytree import tree_map

from stepgraph.errors import ConfigurationError

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_MODULE = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
_ALIASES: dict[str, str] = {
    "32": "32-true",
    "64": "64-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}
CHOICES = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


_NO_SCOPE = contextlib.nullcontext()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    was = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(was)


@dataclass(frozen=True)
class Precision:
    """One of `CHOICES`.

    Attributes:
        name: The choice.
        device_type: `"cpu"` or `"cuda"`.
    """

    name: str
    device_type: str = "cpu"

    @staticmethod
    def named(name: Any) -> str:
        """Return the full name of a choice.

        Raises:
            ConfigurationError: There is no such choice.
        """
        full = _ALIASES.get(str(name), name)
        if full not in CHOICES:
            raise ConfigurationError(
                "Trainer: unknown precision",
                at="the argument `precision`",
                found=repr(name),
                hint="one of " + ", ".join(map(repr, CHOICES)),
            )
        return str(full)

    @property
    def scales(self) -> bool:
        """Whether losses are scaled, so that small gradients survive float16."""
        return self.name == "16-mixed"

    def scaler(self) -> GradScaler | None:
        """Return a new loss scaler, or None if none is needed."""
        return GradScaler(self.device_type) if self.scales else None

    def convert(self, module: nn.Module) -> None:
        """Cast the parameters and buffers of `module` in place, for a `-true` choice."""
        dtype = _MODULE.get(self.name)
        if dtype is not None:
            module.to(dtype)

    def convert_batch(self, batch: Any) -> Any:
        """Return `batch` with floating point tensors in the dtype of the module."""
        dtype = _MODULE.get(self.name)
        if dtype is None:
            return batch
        return tree_map(
            lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, batch
        )

    def default_dtype(self) -> contextlib.AbstractContextManager[Any]:
        """Return a scope in which new tensors have the dtype of the module."""
        dtype = _MODULE.get(self.name)
        return _NO_SCOPE if dtype is None else _default_dtype(dtype)

    def forward(self, *, cache: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Return the scope of a forward.

        Args:
            cache: Cast each weight only once in the scope. False if weights change in the scope: a
                manual step would use the old weights after its first update.
        """
        dtype = _AUTOCAST.get(self.name)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=dtype, cache_enabled=cache)
