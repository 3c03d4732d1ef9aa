"""Values of a backward that may become gradients without a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from stepgraph.effects import FIRST_GRAD, calls
from stepgraph.ir import marker_argument


def stealable(order: Sequence[Node], storages: Mapping[Node, frozenset[Node]]) -> set[Node]:
    """Return the `first_grad` nodes whose value may become the gradient without a copy.

    As in autograd: no other tensor may share the memory, and its strides must be the parameter's.

    Args:
        order: The nodes of a flat graph, in the order in which they run.
        storages: The storages of every node, from `all_storages`.

    Cost: O(nodes + edges).
    """
    last_reader: dict[Node, Node] = {}
    for node in order:
        for used in node.all_input_nodes:
            for root in storages[used]:
                last_reader[root] = node
    found = set()
    for node in order:
        if not calls(node, FIRST_GRAD):
            continue
        param, value = marker_argument(node, "param"), marker_argument(node, "value")
        if not keeps_value(param.meta["val"], value.meta["val"]):
            continue
        if all(_fills(r, value.meta["val"]) and last_reader[r] is node for r in storages[value]):
            found.add(node)
    return found


def keeps_value(param: Tensor, value: Tensor) -> bool:
    """Return whether autograd would keep `value`: strides of dimensions of size 1 are ignored."""
    dense = torch.ops.aten.is_non_overlapping_and_dense(param)
    same = param.dtype == value.dtype and param.shape == value.shape
    strides = zip(param.shape, param.stride(), value.stride(), strict=True)
    return bool(dense and same and all(size == 1 or a == b for size, a, b in strides))


def _fills(root: Node, value: Tensor) -> bool:
    """Return whether `value` fills the memory that `root` allocated."""
    allocated = root.meta.get("val")
    if root.op != "call_function" or not isinstance(allocated, Tensor):
        return False
    elements = allocated.numel()  # may be symbolic: larger than a gradient, or unknown
    return isinstance(elements, int) and elements == value.numel()
