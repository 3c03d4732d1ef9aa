"""The schema of an operator, read once: asking torch for it again and again is slow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Argument:
    """An argument, or a result, of an operator.

    Attributes:
        name: Its name; results often have none.
        type: Its type as the schema has it, for example `Tensor` or `List[int]`.
        default: Its default, or None.
        aliases: The names of the memories it may be, or None for a value of its own. Results that
            are lists lose their names: empty means any.
        is_written: Whether the operator writes it.
    """

    name: str
    type: str
    default: Any
    aliases: frozenset[str] | None
    is_written: bool


@dataclass(frozen=True)
class Schema:
    """What an operator takes and returns.

    Attributes:
        name: With its namespace, without its overload: `aten::add`.
        arguments: In order.
        returns: In order.
        positions: Where each argument stands, by name.
        writes: Whether it writes an argument.
        has_aliases: Whether a result may be the memory of an argument.
    """

    name: str
    arguments: tuple[Argument, ...]
    returns: tuple[Argument, ...]
    positions: dict[str, int]
    writes: bool
    has_aliases: bool


def schema_of(target: Any) -> Schema | None:
    """Return the schema of an operator; None for a Python function, a method or a module."""
    return _read(target) if isinstance(target, torch._ops.OpOverload) else None


@cache
def _read(operator: torch._ops.OpOverload) -> Schema:
    schema = operator._schema
    arguments = tuple(map(_argument, schema.arguments))
    returns = tuple(map(_argument, schema.returns))
    return Schema(
        name=schema.name,
        arguments=arguments,
        returns=returns,
        positions={argument.name: i for i, argument in enumerate(arguments)},
        writes=any(argument.is_written for argument in arguments),
        has_aliases=any(returned.aliases is not None for returned in returns),
    )


def _argument(spec: Any) -> Argument:
    alias = spec.alias_info
    return Argument(
        name=spec.name,
        type=str(spec.type),
        default=spec.default_value,
        aliases=None if alias is None else frozenset(alias.before_set),
        is_written=alias is not None and alias.is_write,
    )
