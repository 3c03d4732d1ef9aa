"""What a `GradScaler` knows and does not say."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.amp import GradScaler


def found_inf(scaler: GradScaler, optimizer: Any) -> dict[Any, Tensor]:
    """Return, by device, `[]` float32: above zero where a gradient was inf or nan."""
    found: dict[Any, Tensor] = scaler._found_inf_per_device(optimizer)
    return found
