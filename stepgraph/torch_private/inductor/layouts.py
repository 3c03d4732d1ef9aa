"""Memory layouts in a graph for Inductor: of the operands of convolutions, and of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

Strides = tuple[int, ...]
_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution.default, _aten.convolution_backward.default)
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


def lay_out(
    graph_module: GraphModule,
    mode: FakeTensorMode,
    inputs: Sequence[Any],
    strides: Sequence[Strides | None],
    *,
    channels_last: bool,
) -> None:
    """Choose the layouts of intermediate values of a graph, in place; its results keep theirs.

    Args:
        graph_module: Functional ATen operators with fake values. Its output is a tuple, afterwards
            a list.
        mode: The mode of the fake values.
        inputs: Fake inputs.
        strides: For each result its required strides; None for those in the trace.
        channels_last: Inductor will use channels last for convolutions. If the strides of a result
            depend on sizes that vary, the layout is left to Inductor.
    """
    output = graph_module.graph.output_node()
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    own = [_strides(result) for result in results]
    wanted = [given or traced for given, traced in zip(strides, own, strict=True)]
    fixed = all(isinstance(n, int) for them in wanted for n in them or ())
    if channels_last and fixed and _put_channels_last(graph_module):
        FakeTensorProp(graph_module, mode).propagate_dont_convert_inputs(*inputs)
    pairs = zip(results, wanted, strict=True)
    output.args = ([_with_strides(result, s) for result, s in pairs],)
    output.meta["user_visible_output_idxs"] = list(range(len(results)))
    graph_module.recompile()


def _strides(result: Any) -> Strides | None:
    value = result.meta.get("val") if isinstance(result, Node) else None
    return value.stride() if isinstance(value, Tensor) else None


def _with_strides(result: Any, strides: Strides | None) -> Any:
    """Return a result with these strides: itself, or a copy that a kernel can write directly.

    A copy always has a dense layout; for strides with gaps, `result` is returned unchanged.
    """
    if strides is None or strides == _strides(result):
        return result
    order = _dense_order(result.meta["val"].shape, strides)
    if order is None:
        return result
    back = sorted(range(len(order)), key=order.__getitem__)
    graph: torch.fx.Graph = result.graph
    with graph.inserting_before(graph.output_node()):
        turned = graph.call_function(_aten.permute.default, (result, order))
        dense = _clone(turned, torch.contiguous_format)
        return graph.call_function(_aten.permute.default, (dense, back))


def _is_image(node: Node) -> bool:
    value = node.meta.get("val")  # a number where a size varies
    return isinstance(value, Tensor) and value.dim() == 4


def _clone(value: Node, memory_format: Any) -> Node:
    return value.graph.call_function(
        _aten.clone.default, (value,), {"memory_format": memory_format}
    )


def _dense_order(shape: Sequence[int], strides: Strides) -> list[int] | None:
    """Return the dimensions from the outermost to the innermost; None if there are gaps."""
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    run = 1
    for dim in reversed(order):
        if shape[dim] != 1 and strides[dim] != run:
            return None
        run *= shape[dim]
    return order


def _put_channels_last(graph_module: GraphModule) -> bool:
    """Convert the operands of convolutions to channels last once, for forward and backward.

    Inductor chooses channels last for a convolution. It assumes that the operands of a backward are
    inputs whose layout a forward has chosen; if both are in one graph, it makes up to three copies:
    one with the layout of the trace, and one with channels last for each of the two.

    Returns:
        Whether the graph has changed.
    """
    graph = graph_module.graph
    if graph.find_nodes(op="call_function", target=_aten.as_strided.default):
        return False  # the graph depends on the memory layout of the trace
    backward = graph.find_nodes(op="call_function", target=_aten.convolution_backward.default)
    read = {value: None for node in backward for value in node.all_input_nodes}
    several = [node for node in read if _is_image(node) and len(node.users) > 1]
    for value in several:
        with graph.inserting_after(value):
            laid_out = _clone(value, torch.channels_last)
        for user in [user for user in value.users if user is not laid_out]:
            if user.target in _CONVOLUTIONS or value.op != "placeholder":
                user.replace_input_with(value, laid_out)
    for node in graph.nodes:
        if node.target in _VIEWS:  # a view of a value that may be channels last now
            node.target = _aten.reshape.default
    return bool(several)
