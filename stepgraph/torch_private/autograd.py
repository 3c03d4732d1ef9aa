"""Operators as autograd runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def below_autograd(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return `operator` as autograd would run it: some kernels depend on the grad mode."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
            return operator(*args, **kwargs)

    return call
