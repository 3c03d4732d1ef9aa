"""Hyper-parameters of a module: the recorded arguments of its `__init__`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FrameType
from typing import Any


class HyperParameters(dict[str, Any]):
    """A dict whose items are attributes too.

    Example:
        >>> HyperParameters(learning_rate=0.1).learning_rate
        0.1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no hyper-parameter {name!r}; there are {list(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def init_arguments(frame: FrameType, owner: Any) -> dict[str, Any]:
    """Return the arguments of the `__init__` that `frame` runs, by name.

    Args:
        frame: The frame of `__init__`, or of a function that it called directly.
        owner: The object under construction.
    """
    signature = inspect.signature(type(owner).__init__)
    found: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if name not in frame.f_locals:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            found.update(frame.f_locals[name])
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = frame.f_locals[name]
    return found


def chosen(
    arguments: dict[str, Any], names: Iterable[str], ignore: Iterable[str]
) -> dict[str, Any]:
    """Return the arguments called `names`, or all, without those in `ignore`."""
    wanted = list(names) or list(arguments)
    return {name: arguments[name] for name in wanted if name not in set(ignore)}
