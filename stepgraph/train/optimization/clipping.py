"""Gradient clipping by norm or by value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stepgraph.errors import ConfigurationError

ALGORITHMS = ("norm", "value")


def checked_algorithm(algorithm: Any) -> str:
    """Return the algorithm's name in lower case.

    Raises:
        ConfigurationError: There is no such algorithm.
    """
    name = str(algorithm).lower()
    if name not in ALGORITHMS:
        raise ConfigurationError(
            "unknown algorithm of gradient clipping",
            at="the argument `gradient_clip_algorithm`",
            found=repr(algorithm),
            hint="one of " + ", ".join(map(repr, ALGORITHMS)),
        )
    return name


def checked_value(value: Any) -> float | None:
    """Return a limit for gradients, or None for no clipping.

    Raises:
        ConfigurationError: `value` is not a number, or is negative.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(
            "gradient_clip_val is not a number",
            at="the argument `gradient_clip_val`",
            found=f"{type(value).__name__}: {value!r}",
            hint="a float such as 1.0, or None for no clipping",
        )
    if value < 0:
        raise ConfigurationError(
            "gradient_clip_val is negative",
            at="the argument `gradient_clip_val`",
            found=repr(value),
            why="a norm is never below it: every gradient would change its sign",
            hint="a positive number, or None for no clipping",
        )
    return float(value) or None


def clip(optimizer: Any, limit: float | None, algorithm: str) -> Tensor | None:
    """Clip the gradients of an optimizer's parameters in place.

    Args:
        optimizer: The user's own optimizer. Gradients, already unscaled, are changed.
        limit: Largest norm or largest absolute value; None does nothing.
        algorithm: `"norm"` or `"value"`.

    Returns:
        The norm of all its gradients before clipping, `[]`, or None if nothing is clipped.
    """
    if limit is None:
        return None
    parameters: list[nn.Parameter] = [
        p for group in optimizer.param_groups for p in group["params"]
    ]
    if algorithm == "norm":
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch.nn.utils.clip_grad_value_(parameters, limit)
    return norm
