"""What an operator reads, writes and returns: its schema, parsed once because that is slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stepgraph.effects import effect_of

_HIDDEN_VIEWS = {
    "aten::_unsafe_view",
    "aten::unsafe_chunk",
    "aten::unsafe_split",
    "aten::unsafe_split_with_sizes",
}
"""Operators that return views although their schemas state new memory."""

_MAY_COPY = {
    "aten::_autocast_to_full_precision",
    "aten::_autocast_to_reduced_precision",
    "aten::contiguous",
    "aten::flatten",
    "aten::pin_memory",
    "aten::ravel",
    "aten::reshape",
    "aten::reshape_as",
    "aten::resolve_conj",
    "aten::resolve_neg",
    "aten::to",
    "aten::type_as",
}
"""Operators that return either a view or a copy, so that they may read the values."""

_OVERWRITES = {
    "aten::_foreach_copy_",
    "aten::_foreach_zero_",
    "aten::copy_",
    "aten::fill_",
    "aten::zero_",
}
"""Operators that write their first argument without reading it."""

_RUNNING_STATISTICS = {
    "aten::_batch_norm_impl_index": "training",
    "aten::batch_norm": "training",
    "aten::batch_norm_gather_stats": "",
    "aten::batch_norm_gather_stats_with_counts": "",
    "aten::batch_norm_update_stats": "",
    "aten::cudnn_batch_norm": "training",
    "aten::instance_norm": "use_input_stats",
    "aten::miopen_batch_norm": "training",
    "aten::native_batch_norm": "training",
}
"""Operators that update running statistics, not stated in their schemas, and the flag for it."""

_NUMBERS = ("int", "SymInt", "float", "bool", "number", "Scalar")


@dataclass(frozen=True)
class Argument:
    """An argument, or a result, of an operator.

    Attributes:
        name: Its name; results often have none.
        type: Its type in the schema, for example `Tensor` or `List[int]`.
        default: Its default, or None.
        aliases: The schema's names of the memories it may share, or None for new memory. For lists
            of results the schema has no names: empty means any argument.
        is_written: Whether the operator writes it.
    """

    name: str
    type: str
    default: Any
    aliases: frozenset[str] | None
    is_written: bool


@dataclass(frozen=True)
class Schema:
    """The arguments, results and side effects of an operator.

    Attributes:
        operator: The operator itself.
        name: With its namespace, without its overload: `aten::add`.
        arguments: In order.
        returns: In order.
        positions: The position of each argument, by name.
        writes: Whether it writes an argument.
        overwrites: Whether it writes its first argument without reading it.
        statistics: The flag that makes it update running statistics, which its schema does not
            state. Empty: it always updates them. None: it has none.
        draws: Whether it draws from torch's random state.
        has_aliases: Whether a result may share the memory of an argument.
        is_hidden_view: Whether it returns views although its schema states new memory.
        may_copy: Whether it returns either a view or a copy.
        is_glue: Whether it computes nothing: a view, a size.
        is_plain: Whether it returns one new tensor or number and has no side effect. Most
            operators are plain and need no further analysis.
    """

    operator: torch._ops.OpOverload
    name: str
    arguments: tuple[Argument, ...]
    returns: tuple[Argument, ...]
    positions: dict[str, int]
    writes: bool
    overwrites: bool
    statistics: str | None
    draws: bool
    has_aliases: bool
    is_hidden_view: bool
    may_copy: bool
    is_glue: bool
    is_plain: bool

    @property
    def only_computes(self) -> bool:
        """Whether it is plain, draws no random numbers and is no effect."""
        return self.is_plain and not self.draws and effect_of(self.operator) is None


_known: dict[int, Schema] = {}
"""By identity: torch hashes operators in Python. A schema keeps its operator alive."""


def schema_of(target: Any) -> Schema | None:
    """Return the schema of an operator; None for a Python function, a method or a module."""
    known = _known.get(id(target))
    if known is None and isinstance(target, torch._ops.OpOverload):
        known = _known[id(target)] = _read(target)
    return known


def _read(operator: torch._ops.OpOverload) -> Schema:
    schema = operator._schema
    name = schema.name
    arguments = tuple(map(_argument, schema.arguments))
    returns = tuple(map(_argument, schema.returns))
    writes = any(argument.is_written for argument in arguments)
    has_aliases = any(returned.aliases is not None for returned in returns)
    is_hidden_view, may_copy = name in _HIDDEN_VIEWS, name in _MAY_COPY
    statistics = _RUNNING_STATISTICS.get(name)
    shares = writes or has_aliases or is_hidden_view or may_copy
    returns_one = len(returns) == 1 and not returns[0].type.startswith("List")
    is_plain = returns_one and not shares and statistics is None
    draws = torch.Tag.nondeterministic_seeded in operator.tags
    return Schema(
        operator=operator,
        name=name,
        arguments=arguments,
        returns=returns,
        positions={argument.name: i for i, argument in enumerate(arguments)},
        writes=writes,
        overwrites=name in _OVERWRITES,
        statistics=statistics,
        draws=draws,
        has_aliases=has_aliases,
        is_hidden_view=is_hidden_view,
        may_copy=may_copy,
        is_glue=not writes and statistics is None and _is_glue(name, returns),
        is_plain=is_plain,
    )


def _is_glue(name: str, returns: tuple[Argument, ...]) -> bool:
    """Return whether an operator that writes nothing computes nothing either."""
    if not returns:
        return False
    if all(returned.type in _NUMBERS for returned in returns):
        return name.startswith("aten::sym_")
    views = all(returned.aliases is not None for returned in returns)
    return (views and name not in _MAY_COPY) or name in _HIDDEN_VIEWS


def _argument(spec: Any) -> Argument:
    alias = spec.alias_info
    return Argument(
        name=spec.name,
        type=str(spec.type),
        default=spec.default_value,
        aliases=None if alias is None else frozenset(alias.before_set),
        is_written=alias is not None and alias.is_write,
    )
