"""Operators that a trace must not take apart: they look at values before they compute.

A fake tensor has no values. Given one, torch leaves the look out and records only the computation:
`one_hot` of a class that is not there would be a row of zeros in the captured step, where eager
raises. So a trace meets a stand-in, one opaque operator, and the flat graph gets the real one back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from stepgraph.torch_private import is_batched


@torch.library.custom_op("stepgraph::one_hot", mutates_args=())
def _whole_one_hot(classes: Tensor, num_classes: int) -> Tensor:
    return functional.one_hot(classes, num_classes)


@_whole_one_hot.register_fake
def _(classes: Tensor, num_classes: int) -> Tensor:
    return functional.one_hot(classes, num_classes)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if is_batched(tensor):
        return functional.one_hot(tensor, num_classes)  # under vmap eager does not look either
    rows: Tensor = _whole_one_hot(tensor, num_classes)
    return rows


_STAND_INS: Mapping[Any, Any] = {
    functional.one_hot: _one_hot,
    torch.ops.aten.one_hot: _one_hot,
    torch.ops.aten.one_hot.default: _one_hot,
}
_REAL: Mapping[Any, Any] = {
    torch.ops.stepgraph.one_hot.default: torch.ops.aten.one_hot.default,
}


def stand_in(graph_module: GraphModule) -> None:
    """Let stand-ins take the place of such functions, also in the graphs that a graph calls."""
    for module in graph_module.modules():
        if isinstance(module, GraphModule):
            _replace(module, _STAND_INS)


def restore(flat: GraphModule) -> None:
    """Put the real operators back in the place of their stand-ins."""
    _replace(flat, _REAL)


def _replace(graph_module: GraphModule, targets: Mapping[Any, Any]) -> None:
    found = [n for n in graph_module.graph.nodes if n.op == "call_function" and n.target in targets]
    for node in found:
        node.target = targets[node.target]
    if found:
        graph_module.recompile()
