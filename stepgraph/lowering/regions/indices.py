"""Indices into tensors, and integer divisors: eager raises where compiled code ends the process.

Inductor checks an index inside a parallel loop, which an exception cannot leave. So every index
of a region must be one of its inputs, and is checked before the region runs; for an invalid index
the eager operators run and raise the usual error. An integer division by a tensor stays eager: on
division by zero, Inductor's kernels end the process up to torch 2.11, and in later versions those
that truncate.

On a GPU nothing is checked here: to read the least index would wait for the device, and eager
kernels do not raise there either. Both eager and Inductor kernels trap on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from stepgraph.ir import marker_argument as argument
from stepgraph.ir.memory_access import storages_of


@dataclass(frozen=True)
class Use:
    """A tensor that an operator uses as an index: `low <= index < high`, or `ignored`."""

    index: Node
    low: Any
    high: Any
    ignored: int | None = None


@dataclass(frozen=True)
class Bound:
    """The bounds of the values of an input of a region."""

    position: int
    low: int
    high: int
    ignored: int | None

    def holds(self, inputs: Sequence[Any]) -> bool:
        """Return whether all values are within the bounds."""
        values: Tensor = inputs[self.position]
        if values.numel() == 0:
            return True
        least, most = torch.aminmax(values)
        if self.low <= least.item() and most.item() < self.high:
            return True
        if self.ignored is None:
            return False
        fits = (values >= self.low) & (values < self.high) | (values == self.ignored)
        return bool(fits.all())


def uses(node: Node) -> list[Use]:
    """Return the indices of an operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    found = _USES.get(_name(node.target), _none)(node)
    return [use for use in found if _is_integer(use.index) and _on_cpu(use.index)]


def bounds(graph_module: GraphModule) -> tuple[Bound, ...]:
    """Return the bounds of the inputs of a region.

    Raises:
        ValueError: A bound is known only when the region runs, or an index is computed in it, or
            it divides integers by a tensor.
    """
    graph = graph_module.graph
    if any(map(_divides_integers, graph.nodes)):
        raise ValueError("integers divided by a tensor, which may have zeros")
    places = {n: i for i, n in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    found: dict[Bound, None] = {}
    for use in (use for node in graph.nodes for use in uses(node)):
        for root in storages_of(use.index):
            if root not in places:
                raise ValueError("an index that it computes")
            if not (isinstance(use.low, int) and isinstance(use.high, int)):
                raise ValueError("an index into a dimension whose size varies")
            found[Bound(places[root], use.low, use.high, use.ignored)] = None
    return tuple(found)


def _name(operator: torch._ops.OpOverload) -> str:
    """Return the name of an operator without underscores around it."""
    return operator._schema.name.removeprefix("aten::").removeprefix("_").rstrip("_")


def _divides_integers(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or _name(node.target) not in _DIVISIONS:
        return False
    return _is_integer(node) and _on_cpu(node) and isinstance(argument(node, "other"), Node)


_DIVISIONS = ("div", "floor_divide", "fmod", "remainder")


def _none(node: Node) -> Iterator[Use]:
    return iter(())


def _rows(node: Node) -> Iterator[Use]:
    yield Use(argument(node, "indices"), 0, _size(argument(node, "weight"), 0))


def _rows_backward(node: Node) -> Iterator[Use]:
    yield Use(argument(node, "indices"), 0, argument(node, "num_weights"))


def _classes(node: Node) -> Iterator[Use]:
    scores = argument(node, "self")
    classes = _size(scores, min(1, scores.meta["val"].ndim - 1))
    yield Use(argument(node, "target"), 0, classes, argument(node, "ignore_index"))


def _along_dimension(node: Node) -> Iterator[Use]:
    dimension = argument(node, "dim")
    yield Use(argument(node, "index"), 0, _size(argument(node, "self"), dimension))


def _in_all_dimensions(node: Node) -> Iterator[Use]:
    indexed = argument(node, "self")
    for dimension, index in enumerate(argument(node, "indices")):
        if isinstance(index, Node):
            size = _size(indexed, dimension)
            yield Use(index, -size, size)


def _flat(node: Node) -> Iterator[Use]:
    elements = argument(node, "self").meta["val"].numel()
    yield Use(argument(node, "index"), -elements, elements)


def _one_hot_classes(node: Node) -> Iterator[Use]:
    yield Use(argument(node, "self"), 0, argument(node, "num_classes"))


def _unpooled(node: Node) -> Iterator[Use]:
    yield Use(argument(node, "indices"), 0, prod(argument(node, "output_size")))


_USES: Mapping[str, Callable[[Node], Iterator[Use]]] = {
    "embedding": _rows,
    "embedding_dense_backward": _rows_backward,
    "nll_loss_forward": _classes,
    "nll_loss_backward": _classes,
    "nll_loss2d_forward": _classes,
    "nll_loss2d_backward": _classes,
    "index": _in_all_dimensions,
    "index_put": _in_all_dimensions,
    "unsafe_index": _in_all_dimensions,
    "unsafe_index_put": _in_all_dimensions,
    "take": _flat,
    "put": _flat,
    "one_hot": _one_hot_classes,
    "max_unpool2d": _unpooled,
    "max_unpool3d": _unpooled,
    **dict.fromkeys(
        (
            "gather",
            "index_add",
            "index_copy",
            "index_fill",
            "index_reduce",
            "index_select",
            "scatter",
            "scatter_add",
            "scatter_reduce",
        ),
        _along_dimension,
    ),
}
"""Which arguments of an operator are indices, by its `_name`."""


def _size(node: Any, dimension: int) -> Any:
    value: Tensor = node.meta["val"]
    return value.shape[dimension] if value.ndim else 1


def _on_cpu(index: Node) -> bool:
    return bool(index.meta["val"].device.type == "cpu")


def _is_integer(index: Any) -> bool:
    value = index.meta.get("val") if isinstance(index, Node) else None
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
