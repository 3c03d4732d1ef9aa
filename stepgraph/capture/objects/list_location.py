"""The variable, item or attribute that holds a list, where a trace puts a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

Holder = tuple[Callable[[], Any], Callable[[Any], None]]


def holder_of(
    source: Any, resolve: Callable[[Any], Any], function: FunctionType
) -> tuple[str, Holder | None]:
    """Return the name of the location that `source` describes, and its reader and writer.

    Args:
        source: Dynamo's description of where the list was found.
        resolve: Evaluates such a description.
        function: The step, whose closure or globals may hold the list.

    Returns:
        The name, and None if the location cannot be written (an argument of the step).
    """
    base = getattr(source, "base", None)
    if base is None:
        return _root(source, function)
    member, index = str(getattr(source, "member", "")), getattr(source, "index", None)
    owner = resolve(base)
    if member in getattr(owner, "__dict__", ()):
        return member, _item(owner.__dict__, member)
    if member == "cell_contents":
        return "list", _attribute(owner, member)
    if isinstance(owner, dict | list) and isinstance(index, str | int):
        return str(index), _item(owner, index)
    return str(index or member), None


def _root(source: Any, function: FunctionType) -> tuple[str, Holder | None]:
    """Return the holder of a closure variable or a global."""
    name = str(getattr(source, "local_name", None) or getattr(source, "global_name", ""))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if name in cells:
        return name, _attribute(cells[name], "cell_contents")
    if getattr(source, "global_name", None) in function.__globals__:
        return name, _item(function.__globals__, name)
    return name, None


def _item(owner: Any, key: Any) -> Holder:
    return (lambda: owner[key]), (lambda value: owner.__setitem__(key, value))


def _attribute(owner: Any, name: str) -> Holder:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))
