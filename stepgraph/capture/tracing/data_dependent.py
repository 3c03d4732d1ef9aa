"""Functions that check values before they compute: a trace must keep the check.

A fake tensor has no values. For one, torch skips the check and records only the computation:
`one_hot` of an invalid class would be a row of zeros in the captured step, where eager raises. So
a trace calls stand-ins: for `one_hot` an opaque operator, which the flat graph replaces by the real
one; for quantiles the same function, preceded by an operator that does the check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional

from stepgraph.torch_private import is_batched


@torch.library.custom_op("stepgraph::one_hot", mutates_args=())
def _opaque_one_hot(classes: Tensor, num_classes: int) -> Tensor:
    return functional.one_hot(classes, num_classes)


@_opaque_one_hot.register_fake
def _(classes: Tensor, num_classes: int) -> Tensor:
    return functional.one_hot(classes, num_classes)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if is_batched(tensor):
        return functional.one_hot(tensor, num_classes)  # under vmap eager does not check either
    rows: Tensor = _opaque_one_hot(tensor, num_classes)
    return rows


def _with_check_of_q(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `torch.quantile`, or a variant of it, with the check of `q` as a separate operator."""

    def quantile(input: Tensor, q: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(q, Tensor) and input.device.type == "cpu":  # on a GPU eager does not check
            valid = ((q >= 0) & (q <= 1)).all()
            torch.ops.aten._assert_async.msg(valid, _BAD_QUANTILE)
        return function(input, q, *args, **kwargs)

    return quantile


_BAD_QUANTILE = "quantile() q values must be in the range [0, 1]"
_quantile, _nanquantile = _with_check_of_q(torch.quantile), _with_check_of_q(torch.nanquantile)

_STAND_INS: Mapping[Any, Any] = {
    functional.one_hot: _one_hot,
    torch.ops.aten.one_hot: _one_hot,
    torch.ops.aten.one_hot.default: _one_hot,
    torch.quantile: _quantile,
    torch.nanquantile: _nanquantile,
    "quantile": _quantile,
    "nanquantile": _nanquantile,
}
"""By function, or by the name of a method of tensors."""

_REAL: Mapping[Any, Any] = {
    torch.ops.stepgraph.one_hot.default: torch.ops.aten.one_hot.default,
}


def stand_in(graph_module: GraphModule) -> None:
    """Replace such functions by their stand-ins, also in the graphs that a graph calls."""
    for module in graph_module.modules():
        if isinstance(module, GraphModule):
            _replace(module, _STAND_INS)


def restore(flat: GraphModule) -> None:
    """Replace the stand-ins by the real operators."""
    _replace(flat, _REAL)


def _replace(graph_module: GraphModule, targets: Mapping[Any, Any]) -> None:
    calls = ("call_function", "call_method")
    found = [n for n in graph_module.graph.nodes if n.op in calls and n.target in targets]
    for node in found:
        node.op, node.target = "call_function", targets[node.target]
    if found:
        graph_module.recompile()
