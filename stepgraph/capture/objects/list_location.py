"""The variable, item or attribute that holds a list, where a trace puts a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from stepgraph.torch_private import Location, location_of

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
    location = location_of(source)
    if location.base is None:
        return _root(location, function)
    attribute, key = location.attribute, location.key
    owner = resolve(location.base)
    if attribute in getattr(owner, "__dict__", ()):
        return attribute, _item(owner.__dict__, attribute)
    if attribute == "cell_contents":
        return "list", _attribute(owner, attribute)
    if isinstance(owner, dict | list) and isinstance(key, str | int):
        return str(key), _item(owner, key)
    return str(key or attribute), None


def _root(location: Location, function: FunctionType) -> tuple[str, Holder | None]:
    """Return the holder of a closure variable or a global."""
    name = location.name
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if name in cells:
        return name, _attribute(cells[name], "cell_contents")
    if location.is_global and name in function.__globals__:
        return name, _item(function.__globals__, name)
    return name, None


def _item(owner: Any, key: Any) -> Holder:
    return (lambda: owner[key]), (lambda value: owner.__setitem__(key, value))


def _attribute(owner: Any, name: str) -> Holder:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))
