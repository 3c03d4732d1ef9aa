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
from stepgraph.lowering.cpp_library import first_line, is_missing_compiler
from stepgraph.lowering.emit import emit
from stepgraph.lowering.regions.compiled_run import CompiledRun, Function, Unsupported
from stepgraph.lowering.regions.driver import drive
from stepgraph.lowering.regions.indices import Bound, bounds
from stepgraph.torch_private import FakeInputs, Unreadable


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """Return one-hot rows of classes that have been checked."""
    every = torch.arange(num_classes, device=classes.device)
    return (classes.unsqueeze(-1) == every).to(torch.int64)


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_batch_norm.default: torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten.one_hot.default: _one_hot,
}
"""Replacements for operators whose schema hides a write, or that check values first."""

_SHARED = 1 << 15
"""Least number of elements for which a loop uses several threads: a barrier costs as much."""


def compile_region(graph_module: GraphModule, name: str) -> CompiledRun:
    """Compile a run of operators.

    Args:
        graph_module: ATen operators, and effects that a region allows; placeholders and results
            carry fake values. Unchanged.
        name: The name of the region.

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
            _with_explicit_writes(graph_module),
            inputs,
            _strides(graph_module),
            # with fixed sizes the trial has compared the layout of every result
            assertions=not fixed,
            threads=threads_for(graph_module),
        )
    except ValueError as error:
        raise Unsupported(str(error)) from error
    except Exception as error:  # the boundary to a compiler: any failure means eager
        raise Unsupported(_message(error)) from error

    def eager(values: list[Any]) -> Sequence[Any]:
        results: Sequence[Any] = program(*values)
        return results

    function, undriven = _with_driver(compiled, eager, inputs, checked, fixed=fixed)
    return CompiledRun(
        name,
        graph_module,
        eager=eager,
        compiled=function,
        written=_written(graph_module, placeholders),
        undriven=undriven,
    )


def _with_driver(
    compiled: Function,
    eager: Function,
    inputs: FakeInputs,
    checked: tuple[Bound, ...],
    *,
    fixed: bool,
) -> tuple[Function, str | None]:
    """Return the function that runs a region, and why it is Inductor's wrapper and no driver."""
    why = "numbers, sizes or layouts that vary"
    if fixed:
        try:
            return drive(compiled, inputs.values, checked, eager), None
        except Unreadable as reason:
            why = str(reason)
    function = _guarded(compiled, eager, inputs) if inputs.symbols else compiled
    return _checked(function, eager, checked) if checked else function, why


def threads_for(graph_module: GraphModule) -> int | None:
    """Return the number of threads for the loops of a region: 1 if all are short, else None.

    Library kernels, such as matrix products, choose their own number.
    """
    values = tree_leaves([node.meta.get("val") for node in graph_module.graph.nodes])
    sizes = [value.numel() for value in values if isinstance(value, Tensor)]
    return 1 if all(isinstance(n, int) and n < _SHARED for n in sizes) else None


def _checked(compiled: Function, eager: Function, checked: tuple[Bound, ...]) -> Function:
    """Return a function that runs the compiled form for valid indices, else the eager one."""

    def choose(values: list[Any]) -> Sequence[Any]:
        for bound in checked:
            if not bound.holds(values):
                return eager(values)
        return compiled(values)

    return choose


def _is_guarded(placeholder: Node) -> bool:
    """Return whether an input always has the layout recorded in the graph."""
    return bool(placeholder.meta.get("stepgraph.guarded"))


def _guarded(
    compiled: Function, eager: Function, inputs: FakeInputs
) -> Callable[[list[Any]], Sequence[Any]]:
    """Return a function that runs the compiled form for its sizes, the eager one for others."""
    places = tuple(inputs.symbols.values())
    known: dict[tuple[int, ...], Function] = {}

    def choose(values: list[Any]) -> Sequence[Any]:
        sizes = tuple(values[i] if dim is None else values[i].shape[dim] for i, dim in places)
        function = known.get(sizes)
        if function is None:
            function = known[sizes] = compiled if inputs.holds(sizes) else eager
        return function(values)

    return choose


def _with_explicit_writes(graph_module: GraphModule) -> GraphModule:
    """Return a copy in which the schema of every operator states its writes, without markers."""
    copied = GraphModule(graph_module, graph_module.graph.__class__())
    values: dict[Node, Node] = {}
    for node in graph_module.graph.nodes:
        values[node] = new = copied.graph.node_copy(node, values.__getitem__)
        if node.target in _REPLACED:
            new.target = _REPLACED[node.target]
        elif (effect := node_effect(node)) is not None:
            assert effect.in_region is not None, "the selection puts no other effect into a region"
            new.target, names = effect.in_region
            new.args = tuple(new.args[effect.positions[name]] for name in names)
    copied.recompile()
    return copied


def _strides(graph_module: GraphModule) -> list[tuple[int, ...] | None]:
    """Return the strides of results that are gradients, as autograd would choose them."""
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


def _message(error: Exception) -> str:
    prefix = "" if is_missing_compiler(error) else "Inductor refuses it: "
    return f"{prefix}{first_line(error)}"
