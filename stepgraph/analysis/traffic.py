"""Bytes that the nodes of a flat graph read and write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.analysis.sizes import hint_of
from stepgraph.effects import Effect
from stepgraph.ir import node_effect, written_arguments


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
    """Return the bytes of the values of all `nodes`; sizes in `known` are not computed again."""
    sizes = known or {}
    return sum(sizes.get(node) or size_of(node.meta.get("val")) for node in nodes)


def bytes_of(
    node: Node,
    storages: Mapping[Node, frozenset[Node]],
    known: Mapping[Node, int] | None = None,
) -> int | None:
    """Return the bytes that one node reads and writes; None if unknown.

    Every operator counts the elements of its arguments and those that it makes or writes, once
    each; expanded elements count once. Views move nothing. Of an update only parameters and
    gradients count: the state of its optimizer is not part of the graph.

    Args:
        node: A node of a flat graph, with a fake tensor in `meta["val"]`.
        storages: The storages of every node, from `all_storages`.
        known: Sizes of values that are already computed.
    """
    effect = node_effect(node)
    if effect is not None:
        return _of_effect(node, effect)
    if node.op != "call_function":
        return 0
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0 if node.target.__module__ in ("_operator", "math") else None
    written = written_arguments(node)
    if not written and node not in storages[node]:
        return 0  # a view
    made = () if written else (node,)
    return sizes_of((*node.all_input_nodes, *written, *made), known)


def _of_effect(node: Node, effect: Effect) -> int | None:
    if effect.moves is None:
        return None
    total = 0
    for name, times in effect.moves.items():
        value = node if name == "result" else effect.argument(node, name)
        total += times * sizes_of(value if isinstance(value, list | tuple) else [value])
    return total
