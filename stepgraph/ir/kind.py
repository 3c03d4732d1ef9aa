"""What the nodes of a step graph are for."""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch.fx import Node

from stepgraph.ir.schema import schema_of


class Kind(Enum):
    """The part a node plays in a training step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    ACCUMULATE = "accumulate"
    ZERO_GRAD = "zero_grad"
    UNSCALE = "unscale"
    GRAD_NORM = "grad_norm"
    CLIP = "clip"
    STEP = "step"
    SCALE_UPDATE = "scale_update"
    LR_STEP = "lr_step"
    CAST = "cast"
    EMA = "ema"
    SYNC = "sync"
    LOG = "log"
    TOGGLE = "toggle"


_KINDS = {
    "first_grad": Kind.ACCUMULATE,
    "add_grad_": Kind.ACCUMULATE,
    "set_grad": Kind.ACCUMULATE,
    "zero_grad": Kind.ZERO_GRAD,
    "step": Kind.STEP,
    "step_part": Kind.STEP,
    "clipped_step": Kind.STEP,
    "scaled_step": Kind.STEP,
    "lr_step": Kind.LR_STEP,
    "set_hyper": Kind.LR_STEP,
    "unscale": Kind.UNSCALE,
    "scale_update": Kind.SCALE_UPDATE,
    "ema": Kind.EMA,
    "hyper": Kind.LOG,
    "check": Kind.FORWARD,
    "log": Kind.LOG,
    "toggle": Kind.TOGGLE,
}


def marker_name(node: Node) -> str | None:
    """Return the name of the marker `node` calls, or None for any other node."""
    schema = schema_of(node.target)
    return None if schema is None else schema.marker


def marker_kind(node: Node) -> Kind | None:
    """Return the kind of a marker, or None for any other node.

    Storing None in a `.grad` clears it. `check` is no effect of its own: it goes with the
    computation around it.
    """
    name = marker_name(node)
    if name == "set_grad" and argument(node, "grad") is None:
        return Kind.ZERO_GRAD
    return None if name is None else _KINDS.get(name)


def argument(node: Node, name: str) -> Any:
    """Return the argument called `name` of a call of an operator, or its default."""
    schema = schema_of(node.target)
    place = None if schema is None else schema.positions.get(name)
    if schema is None or place is None:
        return None
    if place < len(node.args):
        return node.args[place]
    return node.kwargs.get(name, schema.arguments[place].default)
