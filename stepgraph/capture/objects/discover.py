"""Objects to track, found before a step is traced.

A trace that finds an object to track starts again, with stand-ins in its place. An object that is
known before saves that trace; one that the step does not use is no part of the capture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor
from torch.optim import LBFGS

from stepgraph.capture.objects.registry import TrackedObjects, tracked_class, tracked_classes

_DEPTH = 2
"""How far to look: an attribute of an argument, or an element of a list that is one."""

_FEW = 64
"""Elements up to which a container is looked into: more are data."""


def discover(objects: TrackedObjects, values: Iterable[Any]) -> None:
    """Track the objects among `values`, in their attributes and items, and in those of these."""
    for value in values:
        for found in _trackable(value, _DEPTH):
            kind = tracked_class(found)
            if kind is not None and objects.find(found) is None:
                objects.add(kind(found))


def _trackable(value: Any, depth: int) -> Iterator[Any]:
    kind = type(value)  # `isinstance` would ask the object for its `__class__`
    if issubclass(kind, tracked_classes()):
        if not issubclass(kind, LBFGS):  # an optimizer with a loop of its own
            yield value
    elif depth:
        for held in _held_by(value):
            yield from _trackable(held, depth - 1)


def _held_by(value: Any) -> Iterable[Any]:
    """Return what an object holds, without running any of its code."""
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
