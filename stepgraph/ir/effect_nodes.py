"""Nodes that call the operator of an effect: their effect, kind and arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import Node

from stepgraph.effects import Effect, Kind, effect_of
from stepgraph.ir.schema import schema_of


def node_effect(node: Node) -> Effect | None:
    """Return the effect that `node` is, or None for any other node."""
    return effect_of(node.target)


def marker_name(node: Node) -> str | None:
    """Return the name of the effect that `node` is, or None for any other node."""
    effect = effect_of(node.target)
    return None if effect is None else effect.name


def marker_kind(node: Node) -> Kind | None:
    """Return the kind of an effect's node, or None for any other node."""
    effect = effect_of(node.target)
    return None if effect is None else effect.kind_of(node)


def is_update(node: Node) -> bool:
    """Return whether `node` runs an optimizer's `step()` unconditionally."""
    effect = effect_of(node.target)
    return effect is not None and effect.update == "always"


def stored_gradients(node: Node) -> Iterator[tuple[Node, Node | None]]:
    """Yield each parameter whose `.grad` an effect sets, with the new gradient or None."""
    effect = effect_of(node.target)
    if effect is not None and effect.stores is not None:
        yield from effect.stores(node)


def argument(node: Node, name: str) -> Any:
    """Return the argument called `name` of a call of an operator, or its default."""
    schema = schema_of(node.target)
    place = None if schema is None else schema.positions.get(name)
    if schema is None or place is None:
        return None
    if place < len(node.args):
        return node.args[place]
    return node.kwargs.get(name, schema.arguments[place].default)
