"""The registered effects, by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node
from torch.fx.node import has_side_effect

from stepgraph.effects.effect import Effect, RestoreObject
from stepgraph.errors import ConfigurationError

_BY_ID: dict[int, Effect] = {}
"""By identity of the operator, which torch hashes in Python. An effect keeps its own alive."""


def register(effect: Effect) -> Effect:
    """Make an effect known to every part of the library.

    A trace that finds the effect's operator keeps it; graphs, reports and programs treat it as its
    fields say. Called at import, before a step that has the effect is captured.

    Args:
        effect: The effect. Its operator is kept from now on, even where nobody uses its value.

    Returns:
        The effect.

    Raises:
        ConfigurationError: The operator is taken, or the fields contradict each other.
    """
    if id(effect.op) in _BY_ID:
        _refuse(effect, "the operator is that of an effect already", "an operator for each effect")
    if effect.returns_value and effect.rehearsal == "withhold":
        _refuse(
            effect,
            'it returns a value, and rehearsal="withhold"',
            "a rehearsal that withholds the effect would lack its value",
        )
    if effect.returns_value and effect.region == "waits":
        _refuse(
            effect,
            'it returns a value, and region="waits"',
            "operators of the run that it waits for may need the value",
        )
    if isinstance(effect.rehearsal, RestoreObject) and not effect.object_arguments:
        _refuse(
            effect,
            "RestoreObject without an argument `subject` or `optimizer`",
            "a rehearsal restores the object whose number that argument is",
        )
    has_side_effect(effect.op)
    has_side_effect(effect.op.overloadpacket)
    _BY_ID[id(effect.op)] = effect
    return effect


def effect_of(target: Any) -> Effect | None:
    """Return the effect whose operator `target` is; None for any other target of a node."""
    return _BY_ID.get(id(target))


def all_effects() -> tuple[Effect, ...]:
    """Return the registered effects, in the order in which they were registered."""
    return tuple(_BY_ID.values())


def without_result(*operators: Callable[..., Any]) -> None:
    """Give custom operators that return nothing their fake: in a trace they do nothing."""
    for operator in operators:
        operator.register_fake(lambda *args, **kwargs: None)  # type: ignore[attr-defined]


def calls(node: Any, *effects: Effect) -> bool:
    """Return whether `node` is a node that calls one of `effects`."""
    return isinstance(node, Node) and any(node.target is effect.op for effect in effects)


def _refuse(effect: Effect, found: str, why: str) -> None:
    raise ConfigurationError(
        "an effect cannot be registered",
        at=str(effect.op),
        found=found,
        why=why,
        hint="docs/how_to/add_an_effect.md describes every field",
    )
