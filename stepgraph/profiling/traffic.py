"""How many bytes the nodes of a flat graph read and write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from stepgraph.capture import Subject
from stepgraph.ir import all_storages, marker_argument, marker_name, written_arguments
from stepgraph.lowering import Region, stealable

_MOVE_NOTHING = ("zero_grad", "set_grad", "toggle", "lr_step", "hyper", "set_hyper", "log")
"""Effects that handle objects and numbers, no tensors of any size."""


def bytes_moved(graph: Graph, subjects: Mapping[int, Subject]) -> dict[Node, int | None]:
    """Return the bytes that each node reads and writes.

    Every operator counts the elements it is given and those it makes or writes, once each;
    expanded elements count once. Views move nothing. Of a compiled region counts what goes in and
    comes out.

    Args:
        graph: A flat graph whose nodes carry fake tensors in `meta["val"]`.
        subjects: The objects behind its markers, by number; an update moves the parameters and
            the state of its optimizer.

    Returns:
        Bytes by node; None where they are not known.
    """
    storages, stolen = all_storages(graph), stealable(graph)
    found: dict[Node, int | None] = {}
    for node in graph.nodes:
        if node in stolen:
            found[node] = 0  # the value itself becomes the gradient
        elif marker_name(node) is not None:
            found[node] = _of_effect(node, subjects)
        elif node.op == "call_function":
            found[node] = _of_operator(node, storages)
    return found


def size_of(value: Any) -> int:
    """Return the bytes of the elements of a tensor, or of all tensors in a tuple or list."""
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    if not isinstance(value, Tensor):
        return 0
    strides = zip(value.shape, value.stride(), strict=True)
    return math.prod(_hint(n) for n, stride in strides if stride != 0) * value.element_size()


def _hint(size: Any) -> int:
    """Return a size as a number: that of the traced call, where it is symbolic."""
    return int(getattr(getattr(size, "node", size), "hint", size))


def _of_operator(node: Node, storages: Mapping[Node, frozenset[Node]]) -> int | None:
    if isinstance(node.target, Region):
        return _sizes(node.all_input_nodes) + size_of(node.meta.get("val"))
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0 if node.target.__module__ in ("_operator", "math") else None
    written = written_arguments(node)
    if not written and node not in storages[node]:
        return 0  # a view
    made = 0 if written else size_of(node.meta.get("val"))
    return _sizes(node.all_input_nodes) + _sizes(written) + made


def _of_effect(node: Node, subjects: Mapping[int, Subject]) -> int | None:
    name = marker_name(node)
    if name in _MOVE_NOTHING:
        return 0
    if name == "first_grad":
        return 2 * size_of(node.meta.get("val"))
    if name == "add_grad_":
        grad, value = marker_argument(node, "grad"), marker_argument(node, "value")
        return 2 * _sizes([grad]) + _sizes([value])
    if name == "step":
        params, grads = marker_argument(node, "params"), marker_argument(node, "grads")
        state = getattr(subjects[marker_argument(node, "subject")].value, "state", {})
        kept = sum(size_of(list(values.values())) for values in state.values())
        return 2 * _sizes(params) + _sizes(grads) + 2 * kept
    return None


def _sizes(nodes: Iterable[Node]) -> int:
    return sum(size_of(node.meta.get("val")) for node in nodes)
