"""Find objects to track before a step is traced.

A trace that finds a new object to track starts again, with stand-ins for it. Objects found here
save that trace; an object that the step does not use does not change the capture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor
from torch.optim import LBFGS

from stepgraph.capture.objects.registry import TrackedObjects, tracked_class, tracked_classes

_DEPTH = 2
"""Depth of the search: an attribute of an argument, or an element of a list in an attribute."""

_FEW = 64
"""Containers with more elements are taken for data and not searched."""


def discover(objects: TrackedObjects, values: Iterable[Any]) -> None:
    """Track the objects among `values`, and in their attributes and items, two levels deep."""
    for value in values:
        for found in _trackable(value, _DEPTH):
            kind = tracked_class(found)
            if kind is not None and objects.find(found) is None:
                objects.add(kind(found))


def _trackable(value: Any, depth: int) -> Iterator[Any]:
    kind = type(value)  # `isinstance` would read `__class__`, which may be the user's code
    if issubclass(kind, tracked_classes()):
        if not issubclass(kind, LBFGS):  # LBFGS has its own loop around the closure
            yield value
    elif depth:
        for held in _attributes_or_items(value):
            yield from _trackable(held, depth - 1)


def _attributes_or_items(value: Any) -> Iterable[Any]:
    """Return the attributes or items of an object, without running any of its code."""
    kind = type(value)
    if kind in (list, tuple):
        return value if len(value) <= _FEW else ()
    if kind is dict:
        return tuple(value.values()) if len(value) <= _FEW else ()
    if issubclass(kind, type | FunctionType | ModuleType | Tensor):
        return ()
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return ()
    return tuple(attributes.values()) if type(attributes) is dict else ()
