"""The guards of a trace: Dynamo's own, with those on known tensors grouped."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.hooks import Hooks
from torch._dynamo.utils import dynamo_timed, get_metrics_context
from torch.distributions import utils as distributions_utils

from stepgraph.torch_private.dynamo.sources import (
    is_parameter_table,
    parameter_item,
    reads_parameter_by_position,
    source_name,
)

_LAZY = frozenset(
    name
    for found in vars(torch.distributions).values()
    for name, value in (vars(found).items() if isinstance(found, type) else ())
    if isinstance(value, distributions_utils.lazy_property)
)
_LAZY_PLACE = re.compile(rf"\.(?:{'|'.join(sorted(_LAZY))})\b")
_NOTHING = object()
_END = object()  # compared last, so that a table with fewer or more entries fails

Keep = Callable[[Sequence[tuple[str, str, Any]]], Sequence[bool]]


@dataclass
class GroupedTensorGuards:
    """Tensors that one call compares with the trace, instead of one guard for each tensor.

    Attributes:
        tensors: Checked for the sizes, strides, dtype, device and `requires_grad` of the trace.
        tables: `_parameters` of modules, checked for the same keys and objects in the same order.
    """

    tensors: list[Tensor] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)


class Guards:
    """The guards of a traced program.

    Args:
        found: Dynamo's guards.
        grouped: The guards on tensors that Dynamo's leave out.

    Attributes:
        found: Dynamo's guards.
        check: Takes the local names of a call; returns whether all guards hold.
    """

    def __init__(self, found: Any, grouped: GroupedTensorGuards) -> None:
        self.found = found
        self.check = _check(found.check, grouped)

    def failing(self, scope: Mapping[str, Any]) -> str:
        """Return the first of Dynamo's guards that fails; empty if none does."""
        parts = getattr(self.found.check_verbose(scope), "verbose_code_parts", None)
        return str(parts[0]) if parts else ""


def _check(found: Callable[[Any], bool], grouped: GroupedTensorGuards) -> Callable[[Any], bool]:
    """Return a function that checks Dynamo's guards, then the grouped ones."""
    tensors = tuple(grouped.tensors)
    layouts = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    tables = {id(table): table for table in grouped.tables}.values()
    views: list[Iterable[Any]] = []
    for table in tables:
        views += [table.keys(), table.values()]
    views.append((_END,))
    held = tuple(chain.from_iterable(views))

    def check(scope: Any) -> bool:
        if not found(scope) or not layouts(*tensors):
            return False
        return all(map(is_, chain.from_iterable(views), held))

    return check


def build_guards(
    captured: Any, code: Any, names: Mapping[str, Any], keep: Keep, fixed: re.Pattern[str]
) -> Guards:
    """Return the guards of a trace.

    Args:
        captured: The result of Dynamo's `fullgraph_capture`.
        code: The code that was traced.
        names: Its globals as `"G"`, the local names of the traced call as `"L"`.
        keep: Takes `(name, guard type, value)` of each guard; returns whether to keep each.
        fixed: Matches Dynamo's names of objects that are the same in every call.
    """

    def filter_guards(entries: Sequence[Any]) -> Sequence[bool]:
        return keep([(e.name, e.guard_type, e.value if e.has_value else None) for e in entries])

    hooks = Hooks(guard_filter_fn=filter_guards)
    output = captured.graph_capture_output
    _drop_unstable(output.output_graph.guards.inner, names)
    grouped = _group_tensors(output.output_graph, names, fixed)
    with get_metrics_context(), dynamo_timed("stepgraph.guards"):
        return Guards(output.build_guards(code, hooks=hooks).guard_manager, grouped)


def _group_tensors(
    output: Any, names: Mapping[str, Any], fixed: re.Pattern[str]
) -> GroupedTensorGuards:
    """Remove the guards on tensors that have a fixed name; return the guards that replace them.

    A parameter of an optimizer has several: on its layout, on not being another tensor of the
    step, and on being held by a module. The last one is replaced by comparing the module's
    `_parameters`.

    Dynamo keeps the guards of a tensor that is also read by another name, and those of tensors of
    the same class, because both names might refer to one object in a later call.
    """
    guards = output.guards.inner
    if any(reads_parameter_by_position(source_name(s)) for g in guards for s in _sources(g)):
        return GroupedTensorGuards()  # a parameter is read by its position in `_parameters`
    known: dict[int, list[Any]] = {}
    for guard in guards:
        if guard.create_fn_name() in ("TENSOR_MATCH", "DUPLICATE_INPUT"):
            value = _read(source_name(guard.originating_source), names)
            if isinstance(value, Tensor):
                known.setdefault(id(value), [value]).append(guard)
    groups = [_group(value, found, names, fixed) for value, *found in known.values()]
    left = {type(group.tensor) for group in groups if not group.is_complete}
    grouped = GroupedTensorGuards()
    for group in groups:
        if group.is_complete and type(group.tensor) not in left:
            grouped.tensors.append(group.tensor)
            grouped.tables += group.tables
            for guard in group.guards:
                guards.discard(guard)
    _guard_identity(output, grouped.tables, names)
    return grouped


def _guard_identity(
    output: Any, tables: Iterable[dict[str, Any]], names: Mapping[str, Any]
) -> None:
    """Replace Dynamo's guards on the class and key order of tables by guards on their identity.

    Dynamo cannot guard both, and the grouped guards compare the keys and values anyway.
    """
    guards = output.guards.inner
    compared = {id(table) for table in tables}

    def is_compared(source: Any) -> bool:
        name = source_name(source)
        return is_parameter_table(name) and id(_read(name, names)) in compared

    for guard in list(guards):
        if is_compared(guard.originating_source):
            guards.discard(guard)
            guards.add(guard.originating_source.make_guard(GuardBuilder.ID_MATCH))
    for source in filter(is_compared, list(output.guard_on_key_order)):
        output.guard_on_key_order.discard(source)


@dataclass
class _Group:
    """One tensor, with the guards on all of its names.

    Attributes:
        tensor: The tensor.
        guards: The guards.
        tables: `_parameters` of the modules that hold it.
        is_complete: Whether it has a fixed name, and all of its other names are in those tables.
    """

    tensor: Tensor
    guards: list[Any]
    tables: list[dict[str, Any]]
    is_complete: bool


def _group(
    tensor: Tensor, guards: list[Any], names: Mapping[str, Any], fixed: re.Pattern[str]
) -> _Group:
    """Return a tensor with its guards."""
    read = {source_name(source): None for guard in guards for source in _sources(guard)}
    others = [name for name in read if not fixed.fullmatch(name)]
    tables = []
    for name in others:
        table, key = parameter_item(name) or ("", "")
        held = _read(table, names) if table else None
        if type(held) is dict and held.get(key) is tensor:
            tables.append(held)
    is_complete = len(others) < len(read) and len(tables) == len(others)
    return _Group(tensor, guards, tables, is_complete)


def _drop_unstable(guards: Any, names: Mapping[str, Any]) -> None:
    """Drop guards on `lazy_property` objects of `torch.distributions`, and on their attributes.

    Reading such a property from its class returns a new object every time, so these guards would
    always fail. The properties are torch's own code and do not change.
    """
    shown = getattr(distributions_utils, "_lazy_property_and_property", ())
    read = {guard: [source_name(source) for source in _sources(guard)] for guard in guards}
    places = {
        name[: lazy.end()]: None
        for several in read.values()
        for name in several
        for lazy in _LAZY_PLACE.finditer(name)
    }
    unstable = [place for place in places if isinstance(_read(place, names), shown)]
    for guard, several in read.items():
        if any(name == p or name.startswith(f"{p}.") for name in several for p in unstable):
            guards.discard(guard)


def _sources(guard: Any) -> Iterable[Any]:
    """Return the sources that a guard reads: one, or two that must be the same object."""
    other = getattr(guard.create_fn, "keywords", {}).get("source_b")
    return [source for source in (guard.originating_source, other) if source is not None]


def _read(name: str, names: Mapping[str, Any]) -> Any:
    """Return the object that a name of Dynamo's refers to, or `_NOTHING` if there is none."""
    with contextlib.suppress(NameError, AttributeError, LookupError, TypeError):
        return eval(name, dict(names))  # Dynamo's own guards are evaluated the same way
    return _NOTHING
