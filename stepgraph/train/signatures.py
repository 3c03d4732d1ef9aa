"""The arguments of a user's hook, by the names in its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_INDICES = ("batch_idx", "optimizer_idx", "dataloader_idx")


def step_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the arguments of `training_step` or `validation_step`, in order.

    Parameters named `batch_idx`, `optimizer_idx` or `dataloader_idx` are identified by name; of
    the others the first is the batch, the second its index.

    Example:
        >>> step_arguments(lambda x, optimizer_idx: None)
        ('batch', 'optimizer_idx')
    """
    free = iter(("batch", "batch_idx", "optimizer_idx"))
    wanted: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in _INDICES:
            wanted.append(parameter.name)
        else:
            wanted.append(next((f for f in free if f not in wanted), parameter.name))
    return tuple(wanted)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether `function` has a parameter called `name`.

    Example:
        >>> takes(lambda epoch, optimizer_idx: None, "optimizer_idx")
        True
    """
    return name in inspect.signature(function).parameters


def accepted(function: Callable[..., Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return the items of `named` for which `function` has a parameter.

    Example:
        >>> accepted(lambda on_tpu: None, {"on_tpu": False, "using_lbfgs": False})
        {'on_tpu': False}
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return named
    return {name: value for name, value in named.items() if name in parameters}


def overridden(instance: Any, base: type, name: str) -> bool:
    """Return whether `instance` has a method `name` of its own, not that of `base`."""
    own = getattr(type(instance), name, None)
    return name in vars(instance) or own is not getattr(base, name, None)
