"""Floating-point operations of a step graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import flop_registry

from stepgraph.analysis.sizes import hint_of


def flops(flat: GraphModule) -> int:
    """Return the floating-point operations of the products in a flat graph.

    As in torch's own counter: matrix products, convolutions and attention, two operations for each
    multiply-add. Symbolic sizes have their values in the traced call.

    Args:
        flat: A flat graph whose nodes carry fake tensors in `meta["val"]`.
    """
    return sum(map(flops_of, flat.graph.nodes))


def flops_of(node: Node) -> int:
    """Return the floating-point operations of one node of a flat graph; see `flops`."""
    packet = getattr(node.target, "overloadpacket", None)
    formula: Any = flop_registry.get(packet)
    if formula is None:
        return 0
    # `__wrapped__` takes shapes; the wrapper's search for tensors in the arguments costs more
    of_shapes: Any = getattr(formula, "__wrapped__", None)
    if of_shapes is None:
        args, kwargs = map_arg(node.args, _value), map_arg(node.kwargs, _value)
        return int(formula(*args, **kwargs, out_val=_value(node)))
    args, kwargs = map_arg(node.args, _shape), map_arg(node.kwargs, _shape)
    return int(of_shapes(*args, **kwargs, out_shape=_shape(node)))


def _value(node: Node) -> Any:
    """Return the fake tensor of a node, with its sizes as numbers."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and not all(type(size) is int for size in value.shape):
        return torch.empty(_shape_of(value), dtype=value.dtype, device="meta")
    return value


def _shape(node: Node) -> Any:
    """Return the sizes of a node's tensor, or tensors, as numbers; any other value unchanged."""
    return _shape_of(node.meta.get("val"))


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(map(hint_of, value.shape))
    if isinstance(value, list | tuple):
        return tuple(map(_shape_of, value))
    return value
