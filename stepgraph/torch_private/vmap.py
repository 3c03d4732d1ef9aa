"""Tensors inside of `torch.vmap`."""

from __future__ import annotations

import torch
from torch import Tensor


def is_batched(tensor: Tensor) -> bool:
    """Return whether `tensor` is what `vmap` makes of a batch: one dimension is hidden."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))
