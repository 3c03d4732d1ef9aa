"""Regions compiled by Inductor: forward and backward together, as one inference graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from stepgraph import torch_private
from stepgraph.analysis import keeps_value
from stepgraph.ir import node_effect
from stepgraph.ir.memory_access import storages_of, written_arguments
from stepgraph.lowering.cpp_library import first_line
from stepgraph.lowering.emit import emit
from stepgraph.lowering.regions.compiled_run import CompiledRun, Function, Unsupported
from stepgraph.lowering.regions.driver import drive
from stepgraph.lowering.regions.indices import Bound, bounds
from stepgraph.torch_private import FakeInputs, Unreadable


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """Return one-hot rows of classes that are known to be there."""
    every = torch.arange(num_classes, device=classes.device)
    return (classes.unsqueeze(-1) == every).to(torch.int64)


_SPELLED_OUT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_batch_norm.default: torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten.one_hot.default: _one_hot,
}
"""Operators whose schema hides what they write, or that check values first: what Inductor gets."""

_SHARED = 1 << 15
"""Elements of a loop that threads share: for fewer, waiting for each other costs more."""


def compile_region(graph_module: GraphModule, name: str) -> CompiledRun:
    """Compile a run of operators.

    Args:
        graph_module: ATen operators, and effects that may be inside of a region; placeholders and
            results carry fake values. Unchanged.
        name: What the region is called.

    Raises:
        Unsupported: There is no C++ compiler, or Inductor cannot compile it.
    """
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    program = emit(graph_module, {}).function
    try:
        checked = bounds(graph_module)
        inputs = FakeInputs([node.meta["val"] for node in placeholders])
        fixed = not inputs.symbols and all(map(_is_guarded, placeholders))
        compiled = torch_private.compile_inference(
            _spelled_out(graph_module),
            inputs,
            _strides(graph_module),
            # with fixed sizes the trial has shown what every kernel returns
            assertions=not fixed,
            threads=threads_for(graph_module),
        )
    except ValueError as error:
        raise Unsupported(str(error)) from error
    except Exception as error:  # the boundary to a compiler: any failure means eager
        raise Unsupported(_complaint(error)) from error

    def eager(values: list[Any]) -> Sequence[Any]:
        results: Sequence[Any] = program(*values)
        return results

    function, undriven = _driven(compiled, eager, inputs, checked, fixed=fixed)
    return CompiledRun(
        name,
        graph_module,
        eager=eager,
        compiled=function,
        written=_written(graph_module, placeholders),
        undriven=undriven,
    )


def _driven(
    compiled: Function,
    eager: Function,
    inputs: FakeInputs,
    checked: tuple[Bound, ...],
    *,
    fixed: bool,
) -> tuple[Function, str | None]:
    """Return what runs a region: a driver, or Inductor's wrapper and why there is no driver."""
    why = "numbers, sizes or layouts that vary"
    if fixed:
        try:
            return drive(compiled, inputs.values, checked, eager), None
        except Unreadable as reason:
            why = str(reason)
    function = _guarded(compiled, eager, inputs) if inputs.symbols else compiled
    return _checked(function, eager, checked) if checked else function, why


def threads_for(graph_module: GraphModule) -> int | None:
    """Return how many threads share a loop of a region: one where all are short, else None.

    Kernels of libraries, a matrix product say, decide for themselves.
    """
    values = tree_leaves([node.meta.get("val") for node in graph_module.graph.nodes])
    sizes = [value.numel() for value in values if isinstance(value, Tensor)]
    return 1 if all(isinstance(n, int) and n < _SHARED for n in sizes) else None


def _checked(compiled: Function, eager: Function, checked: tuple[Bound, ...]) -> Function:
    """Return the compiled form for indices within their bounds; the eager one raises for others."""

    def choose(values: list[Any]) -> Sequence[Any]:
        for bound in checked:
            if not bound.holds(values):
                return eager(values)
        return compiled(values)

    return choose


def _is_guarded(placeholder: Node) -> bool:
    """Return whether an input always has the layout that the graph says."""
    return bool(placeholder.meta.get("stepgraph.guarded"))


def _guarded(
    compiled: Function, eager: Function, inputs: FakeInputs
) -> Callable[[list[Any]], Sequence[Any]]:
    """Return the compiled form for sizes it was made for, the eager one for others."""
    places = tuple(inputs.symbols.values())
    known: dict[tuple[int, ...], Function] = {}

    def choose(values: list[Any]) -> Sequence[Any]:
        sizes = tuple(values[i] if dim is None else values[i].shape[dim] for i, dim in places)
        function = known.get(sizes)
        if function is None:
            function = known[sizes] = compiled if inputs.holds(sizes) else eager
        return function(values)

    return choose


def _spelled_out(graph_module: GraphModule) -> GraphModule:
    """Return a copy in which every operator says what it writes, and no marker is left."""
    copied = GraphModule(graph_module, graph_module.graph.__class__())
    values: dict[Node, Node] = {}
    for node in graph_module.graph.nodes:
        values[node] = new = copied.graph.node_copy(node, values.__getitem__)
        if node.target in _SPELLED_OUT:
            new.target = _SPELLED_OUT[node.target]
        elif (effect := node_effect(node)) is not None:
            assert effect.in_region is not None, "the selection puts no other effect into a region"
            new.target, names = effect.in_region
            new.args = tuple(new.args[effect.positions[name]] for name in names)
    copied.recompile()
    return copied


def _strides(graph_module: GraphModule) -> list[tuple[int, ...] | None]:
    """Return the strides of the results that are gradients: those autograd would give them."""
    (results,) = graph_module.graph.output_node().args
    found: list[tuple[int, ...] | None] = []
    for node in results:  # type: ignore[union-attr]
        effect = node_effect(node) if isinstance(node, Node) else None
        is_gradient = effect is not None and effect.strides_of is not None
        found.append(_gradient_strides(node) if is_gradient else None)  # type: ignore[arg-type]
    return found


def _gradient_strides(node: Node) -> tuple[int, ...] | None:
    param, value = (argument.meta["val"] for argument in node.all_input_nodes[:2])
    like: Tensor = value if keeps_value(param, value) else torch.empty_like(param)
    strides = like.stride()
    return strides if all(isinstance(n, int) for n in strides) else None


def _written(graph_module: GraphModule, placeholders: list[Node]) -> tuple[int, ...]:
    written = {
        root
        for node in graph_module.graph.nodes
        for argument in written_arguments(node)
        for root in storages_of(argument)
    }
    return tuple(i for i, node in enumerate(placeholders) if node in written)


def _complaint(error: Exception) -> str:
    complaint = first_line(error)
    return complaint if complaint == "no C++ compiler" else f"Inductor refuses it: {complaint}"
