"""Names for the inputs and the tracked objects of a step, as written in the user's code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from stepgraph.capture.objects import TrackedObjects
from stepgraph.ir import Role, Slot

_STEPS = re.compile(r"\.(?:__dict__\[')?_(?:modules|parameters|buffers)(?:'\])?\['([^']*)'\]")

_TABLE = re.compile(r"^__import_stepgraph\w*\.TABLE\.")
"""Before the name of a tensor that only a tracked object holds."""


def readable(source: str) -> str:
    """Convert Dynamo's name of the source of a value to Python."""
    name = re.sub(r"^[LG]\['([^']*)'\]", r"\1", source)
    name = _STEPS.sub(r".\1", _TABLE.sub("", name))
    return name.replace(".cell_contents", "").replace("__closure__", "closure")


def slots(
    sources: Iterable[str], values: Iterable[Any], local_names: Mapping[str, Any]
) -> list[Slot]:
    """Return role and name of every input of a traced graph.

    Args:
        sources: Dynamo's name of the source of each input.
        values: The real inputs.
        local_names: Arguments and closure variables of the step, by name.
    """
    known = _tensors(local_names)
    found: list[Slot] = []
    taken: set[str] = set()
    for source, value in zip(sources, values, strict=True):
        base = source.removesuffix(".grad")
        if base != source:
            found.append(Slot(Role.GRAD, known.get(base, readable(base))))
            continue
        name = _unused(known.get(id(value)) or readable(source), taken)
        known[source] = name
        found.append(Slot(_role(source, value, local_names), name))
    return found


def _role(source: str, value: Any, local_names: Mapping[str, Any]) -> Role:
    if isinstance(value, nn.Parameter):
        return Role.PARAM
    root = re.match(r"^L\['([^']*)'\]", source)
    owner = local_names.get(root.group(1)) if root else None
    is_argument = root is not None and not isinstance(owner, nn.Module) and not _is_object(owner)
    if is_argument or not isinstance(value, Tensor):
        return Role.BATCH
    return Role.PARAM if value.requires_grad else Role.BUFFER


def _is_object(value: Any) -> bool:
    """Return whether `value` holds state of the user's, rather than a batch."""
    return any(isinstance(held, nn.Module) for held in getattr(value, "__dict__", {}).values())


def _unused(name: str, taken: set[str]) -> str:
    """Return `name`, or a numbered one if another tensor has it; add it to `taken`."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}#{number}"
    taken.add(candidate)
    return candidate


def _tensors(local_names: Mapping[str, Any]) -> dict[Any, str]:
    """Return the names of the tensors that arguments and closure variables hold, by id.

    Those of modules, and those that are attributes of any other object.
    """
    modules: dict[str, nn.Module] = {}
    attributes: dict[str, Tensor] = {}
    for name, value in local_names.items():
        if isinstance(value, nn.Module):
            modules[name] = value
            continue
        for key, held in getattr(value, "__dict__", {}).items():
            if isinstance(held, nn.Module):
                modules[f"{name}.{key}"] = held
            elif isinstance(held, Tensor):
                attributes[f"{name}.{key}"] = held
    names: dict[Any, str] = {}
    for name, module in modules.items():
        prefix = "" if name == "self" else f"{name}."
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            names.setdefault(id(tensor), f"{prefix.removeprefix('self.')}{key}")
    for name, tensor in attributes.items():
        names.setdefault(id(tensor), name.removeprefix("self."))
    return names


def name_objects(objects: TrackedObjects, local_names: Mapping[str, Any]) -> None:
    """Give every tracked object the user's name for it; names are unique."""
    names: dict[int, str] = {}
    for name, value in local_names.items():
        names.setdefault(id(value), name)
        prefix = "" if name == "self" else f"{name}."
        for key, held in getattr(value, "__dict__", {}).items():
            names.setdefault(id(held), f"{prefix}{key}")
            for i, item in enumerate(held if isinstance(held, list | tuple) else ()):
                names.setdefault(id(item), f"{prefix}{key}[{i}]")
    taken: set[str] = set()
    for tracked in objects.all:
        tracked.name = tracked.name or names.get(id(tracked.value), "")
        if tracked.label in taken:
            tracked.name = f"{tracked.name}#{tracked.number}"
        taken.add(tracked.label)
