"""Names for the inputs and the tracked objects of a step, as written in the user's code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from stepgraph.capture.objects import TrackedObjects
from stepgraph.capture.objects.table import TABLE_SOURCE
from stepgraph.ir import Role, Slot
from stepgraph.torch_private import local_root, owner_of_gradient, readable


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
        owner = owner_of_gradient(source)
        if owner is not None:
            found.append(Slot(Role.GRAD, known.get(owner, _name(owner))))
            continue
        name = _unused(known.get(id(value)) or _name(source), taken)
        known[source] = name
        found.append(Slot(_role(source, value, local_names), name))
    return found


def _name(source: str) -> str:
    """Return a source as Python; without the table, if only a tracked object holds the value."""
    return readable(source.removeprefix(f"{TABLE_SOURCE}."))


def _role(source: str, value: Any, local_names: Mapping[str, Any]) -> Role:
    if isinstance(value, nn.Parameter):
        return Role.PARAM
    root = local_root(source)
    owner = None if root is None else local_names.get(root)
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
