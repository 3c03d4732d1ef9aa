"""Subjects that a step is likely to meet, found before it is traced.

A trace that meets a subject starts again, with stand-ins in its place. Whoever is known ahead
saves a trace; whoever is not touched in the end has no part in what was captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor
from torch.optim import LBFGS

from stepgraph.capture.objects.registry import SUBJECTS, Subjects, subject_class

_DEPTH = 2
"""How far to look: an attribute of an argument, or an element of a list that is one."""

_FEW = 64
"""Elements up to which a container is looked into: more are data."""


def meet_ahead(subjects: Subjects, values: Iterable[Any]) -> None:
    """Add the subjects among `values`, in what they hold, and in what that holds."""
    for value in values:
        for found in _subjects_in(value, _DEPTH):
            kind = subject_class(found)
            if kind is not None and subjects.find(found) is None:
                subjects.add(kind(found))


def _subjects_in(value: Any, depth: int) -> Iterator[Any]:
    kind = type(value)  # `isinstance` would ask the object for its `__class__`
    if issubclass(kind, tuple(SUBJECTS)):
        if not issubclass(kind, LBFGS):  # whoever calls closures is looked for by them
            yield value
    elif depth:
        for held in _held_by(value):
            yield from _subjects_in(held, depth - 1)


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
