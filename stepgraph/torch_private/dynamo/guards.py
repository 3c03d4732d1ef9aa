"""Dynamo's guards, without those that never hold, and with known tensors checked together."""

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

from stepgraph.torch_private.dynamo.sources import source_name

_LAZY = frozenset(
    name
    for found in vars(torch.distributions).values()
    for name, value in (vars(found).items() if isinstance(found, type) else ())
    if isinstance(value, distributions_utils.lazy_property)
)
_LAZY_PLACE = re.compile(rf"\.(?:{'|'.join(sorted(_LAZY))})\b")
_TABLE = re.compile(r"[^()]+\._parameters")
_BY_PLACE = re.compile(r"dict\.keys\([^()]+\._parameters\)")
_HELD = re.compile(rf"(?P<table>{_TABLE.pattern})\['(?P<key>[^'\\]+)'\]")
_NOTHING = object()
_END = object()  # a table with fewer or more values than it had shifts it

Keep = Callable[[Sequence[tuple[str, str, Any]]], Sequence[bool]]


@dataclass
class Together:
    """Tensors that are compared in one call with what a trace saw, instead of by a guard each.

    Attributes:
        tensors: Must have the layout, dtype, device and flags they have now.
        tables: Parameters of modules by name: must hold, in the same order, what they hold now.
    """

    tensors: list[Tensor] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)


class Guards:
    """What must hold of a call for a traced program to be right for it.

    Args:
        found: Dynamo's guards.
        together: Tensors that they leave out.

    Attributes:
        found: Dynamo's guards.
        check: Returns whether all of it holds for a call with these local names.
    """

    def __init__(self, found: Any, together: Together) -> None:
        self.found = found
        self.check = _check(found.check, together)

    def failing(self, scope: Mapping[str, Any]) -> str:
        """Return the first of Dynamo's guards that does not hold; empty if they all do."""
        parts = getattr(self.found.check_verbose(scope), "verbose_code_parts", None)
        return str(parts[0]) if parts else ""


def _check(found: Callable[[Any], bool], together: Together) -> Callable[[Any], bool]:
    """Return a function that asks Dynamo's guards, then compares the tensors."""
    tensors = tuple(together.tensors)
    layouts = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    tables = {id(table): table for table in together.tables}.values()
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
        captured: What Dynamo has captured.
        code: The code that was traced.
        names: Its globals as `"G"`, the local names of the traced call as `"L"`.
        keep: A filter: decides about `(name, guard type, value)` of each guard.
        fixed: Dynamo's names of what is the same object in every call.
    """

    def filter_guards(entries: Sequence[Any]) -> Sequence[bool]:
        return keep([(e.name, e.guard_type, e.value if e.has_value else None) for e in entries])

    hooks = Hooks(guard_filter_fn=filter_guards)
    output = captured.graph_capture_output
    _drop_lost(output.output_graph.guards.inner, names)
    together = _take_together(output.output_graph, names, fixed)
    with get_metrics_context(), dynamo_timed("stepgraph.guards"):
        return Guards(output.build_guards(code, hooks=hooks).guard_manager, together)


def _take_together(output: Any, names: Mapping[str, Any], fixed: re.Pattern[str]) -> Together:
    """Take out the guards on tensors that have a fixed name; return what replaces them.

    A parameter of an optimizer has some: its layout, that it is no other tensor of the step, and
    that a module holds it. The last one needs the module's table of parameters to be the same.

    A tensor is left to Dynamo if it is read elsewhere as well, or if one that is left to Dynamo
    has the same class: they might become one object.
    """
    guards = output.guards.inner
    if any(_BY_PLACE.search(source_name(source)) for g in guards for source in _sources(g)):
        return Together()  # a parameter that is known by its place in the order of a table
    known: dict[int, list[Any]] = {}
    for guard in guards:
        if guard.create_fn_name() in ("TENSOR_MATCH", "DUPLICATE_INPUT"):
            value = _read(source_name(guard.originating_source), names)
            if isinstance(value, Tensor):
                known.setdefault(id(value), [value]).append(guard)
    groups = [_group(value, found, names, fixed) for value, *found in known.values()]
    left = {type(group.tensor) for group in groups if not group.is_complete}
    together = Together()
    for group in groups:
        if group.is_complete and type(group.tensor) not in left:
            together.tensors.append(group.tensor)
            together.tables += group.tables
            for guard in group.guards:
                guards.discard(guard)
    _guard_identity(output, together.tables, names)
    return together


def _guard_identity(
    output: Any, tables: Iterable[dict[str, Any]], names: Mapping[str, Any]
) -> None:
    """Let Dynamo guard the identity of tables, instead of their class and the order of their keys.

    It cannot do both, and whoever compares keys and values of the same table needs no other.
    """
    guards = output.guards.inner
    compared = {id(table) for table in tables}

    def is_compared(source: Any) -> bool:
        name = source_name(source)
        return bool(_TABLE.fullmatch(name)) and id(_read(name, names)) in compared

    for guard in list(guards):
        if is_compared(guard.originating_source):
            guards.discard(guard)
            guards.add(guard.originating_source.make_guard(GuardBuilder.ID_MATCH))
    for source in filter(is_compared, list(output.guard_on_key_order)):
        output.guard_on_key_order.discard(source)


@dataclass
class _Group:
    """One tensor, with the guards on it by whatever name.

    Attributes:
        tensor: The tensor.
        guards: The guards.
        tables: Tables of parameters of modules that hold it.
        is_complete: Whether it has a fixed name, and no others but in those tables.
    """

    tensor: Tensor
    guards: list[Any]
    tables: list[dict[str, Any]]
    is_complete: bool


def _group(
    tensor: Tensor, guards: list[Any], names: Mapping[str, Any], fixed: re.Pattern[str]
) -> _Group:
    """Return a tensor with what is guarded about it."""
    read = {source_name(source): None for guard in guards for source in _sources(guard)}
    others = [name for name in read if not fixed.fullmatch(name)]
    tables = []
    for name in others:
        held = _HELD.fullmatch(name)
        table = _read(held["table"], names) if held else None
        if held and type(table) is dict and table.get(held["key"]) is tensor:
            tables.append(table)
    is_complete = len(others) < len(read) and len(tables) == len(others)
    return _Group(tensor, guards, tables, is_complete)


def _drop_lost(guards: Any, names: Mapping[str, Any]) -> None:
    """Drop guards on and below `lazy_property` of `torch.distributions`.

    Read from its class, such a property is another object every time, without what Dynamo found
    in it: a guard that never holds. They are torch's own code and stay what they are.
    """
    shown = getattr(distributions_utils, "_lazy_property_and_property", ())
    read = {guard: [source_name(source) for source in _sources(guard)] for guard in guards}
    places = {
        name[: lazy.end()]: None
        for several in read.values()
        for name in several
        for lazy in _LAZY_PLACE.finditer(name)
    }
    lost = [place for place in places if isinstance(_read(place, names), shown)]
    for guard, several in read.items():
        if any(name == p or name.startswith(f"{p}.") for name in several for p in lost):
            guards.discard(guard)


def _sources(guard: Any) -> Iterable[Any]:
    """Return the sources that a guard reads: one, or two that must be the same object."""
    other = getattr(guard.create_fn, "keywords", {}).get("source_b")
    return [source for source in (guard.originating_source, other) if source is not None]


def _read(name: str, names: Mapping[str, Any]) -> Any:
    """Return what a name of Dynamo's means now; nothing that anything else is, if it is unset."""
    with contextlib.suppress(NameError, AttributeError, LookupError, TypeError):
        return eval(name, dict(names))  # Dynamo's own guards are evaluated the same way
    return _NOTHING
