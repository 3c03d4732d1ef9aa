"""Bytes that the nodes of a flat graph read and write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.analysis.sizes import hint_of
from stepgraph.ir import UPDATES, marker_argument, marker_name, written_arguments

MOVE_NOTHING = ("zero_grad", "set_grad", "toggle", "lr_step", "hyper", "set_hyper", "log")
"""Effects that handle objects and numbers, no tensors of any size."""


def size_of(value: Any) -> int:
    """Return the bytes of the elements of a tensor, or of all tensors in a tuple or list."""
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    if not isinstance(value, Tensor):
        return 0
    strides = zip(value.shape, value.stride(), strict=True)
    counted = (n for n, stride in strides if not (isinstance(stride, int) and stride == 0))
    return math.prod(map(hint_of, counted)) * value.element_size()


def sizes_of(nodes: Iterable[Node], known: Mapping[Node, int] | None = None) -> int:
    """Return the bytes of the values of all `nodes`, of those that are `known` without looking."""
    sizes = known or {}
    return sum(sizes.get(node) or size_of(node.meta.get("val")) for node in nodes)


def bytes_of(
    node: Node,
    storages: Mapping[Node, frozenset[Node]],
    known: Mapping[Node, int] | None = None,
) -> int | None:
    """Return the bytes that one node reads and writes; None if that is not known.

    Every operator counts the elements it is given and those it makes or writes, once each;
    expanded elements count once. Views move nothing. Of an update only parameters and gradients
    count: the state of its optimizer is no part of the graph.

    Args:
        node: A node of a flat graph, with a fake tensor in `meta["val"]`.
        storages: The storages of every node, from `all_storages`.
        known: The sizes of values that have been computed before.
    """
    name = marker_name(node)
    if name is not None:
        return _of_effect(node, name)
    if node.op != "call_function":
        return 0
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0 if node.target.__module__ in ("_operator", "math") else None
    written = written_arguments(node)
    if not written and node not in storages[node]:
        return 0  # a view
    made = () if written else (node,)
    return sizes_of((*node.all_input_nodes, *written, *made), known)


def _of_effect(node: Node, name: str) -> int | None:
    if name in MOVE_NOTHING:
        return 0
    if name == "first_grad":
        return 2 * size_of(node.meta.get("val"))
    if name == "add_grad_":
        grad, value = marker_argument(node, "grad"), marker_argument(node, "value")
        return 2 * sizes_of([grad]) + sizes_of([value])
    if name in UPDATES:
        return 2 * sizes_of(marker_argument(node, "params")) + sizes_of(
            marker_argument(node, "grads")
        )
    return None
