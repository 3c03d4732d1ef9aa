"""Inductor as a compiler of one inference graph, without Dynamo and AOTAutograd around it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._guards import tracing as tracing_context
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, free_unbacked_symbols
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from stepgraph.torch_private.dynamo.sources import constant_source
from stepgraph.torch_private.inductor.layouts import lay_out

Compiled = Callable[[list[Any]], Sequence[Any]]


def has_unbacked(value: Any) -> bool:
    """Return whether a fake value is, or has a size that is, a number that depends on data."""
    if isinstance(value, Tensor | torch.SymInt):
        return bool(free_unbacked_symbols(value))
    return False


class FakeInputs:
    """Stand-ins for the inputs of a graph, with their own shape environment.

    Assumptions of the compiler about sizes are recorded in that environment; `holds` checks them
    for other sizes.

    Args:
        values: The inputs in the trace: fake or real tensors, numbers, symbolic numbers.

    Attributes:
        mode: The fake tensor mode of the stand-ins.
        values: The stand-ins.
        symbols: The source of each symbol: position of an input and dimension, None for a number.

    Raises:
        ValueError: A size depends on a symbol that is neither an input nor a size of one.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.symbols: dict[sympy.Symbol, tuple[int, int | None]] = {}
        self._sizes: dict[sympy.Symbol, Any] = {}
        self._own: dict[sympy.Symbol, sympy.Symbol] = {}
        self._env = ShapeEnv(duck_shape=False)
        self.mode = FakeTensorMode(shape_env=self._env)
        for i, value in enumerate(values):
            shown = value.shape if isinstance(value, Tensor) else [value]
            for dimension, size in enumerate(shown):
                where = (i, dimension if isinstance(value, Tensor) else None)
                self._add_symbol(size, where)
        with self.mode:
            self.values = [self._stand_in(value) for value in values]

    def _add_symbol(self, size: Any, where: tuple[int, int | None]) -> None:
        symbol = size.node.expr if isinstance(size, torch.SymInt) else None
        if isinstance(symbol, sympy.Symbol) and symbol not in self.symbols:
            source = constant_source(f"size_{len(self.symbols)}")
            own = self._env.create_symbol(size.node.hint, source, DimDynamic.DYNAMIC)
            number = self._env.create_symintnode(own, hint=size.node.hint, source=source)
            self.symbols[symbol] = where
            self._sizes[symbol], self._own[symbol] = number, own

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(
            [self._size(n) for n in value.shape],
            [self._size(n) for n in value.stride()],
            dtype=value.dtype,
            device=value.device,
        )

    def _size(self, size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        unknown = expression.free_symbols - set(self.symbols)
        if unknown:
            raise ValueError(f"no input has the size {min(map(str, unknown))}")
        return sympy_interp(PythonReferenceAnalysis, self._sizes, expression)

    def holds(self, sizes: Sequence[int]) -> bool:
        """Return whether all recorded assumptions are true for other sizes.

        Args:
            sizes: A size for each of `symbols`, in their order.
        """
        own = [self._own[symbol] for symbol in self.symbols]
        known = dict(zip(own, map(sympy.Integer, sizes), strict=True))
        for symbol, value in known.items():
            allowed = self._env.var_to_range[symbol]
            if not bool(sympy.And(allowed.lower <= value, value <= allowed.upper)):
                return False
        replaced = (sympy.Eq(was, now) for was, now in self._env.replacements.items())
        assumed = [*replaced, *(guard.expr for guard in self._env.guards)]
        return all(bool(fact.subs(known)) for fact in assumed)


def compile_inference(
    graph_module: GraphModule,
    inputs: FakeInputs,
    strides: Sequence[tuple[int, ...] | None],
    *,
    assertions: bool = True,
    threads: int | None = None,
) -> Compiled:
    """Compile a graph without autograd; it may write its inputs.

    Args:
        graph_module: ATen operators, no random ones. Its output is a tuple. Unchanged.
        inputs: Stand-ins for its inputs.
        strides: For each output its required strides; None for those of the graph.
        assertions: Check sizes and strides of inputs and of kernel results in every call.
        threads: Number of threads for each loop; torch's number if None.

    Returns:
        A function of a list of the inputs, which it empties.

    Raises:
        Exception: Any exception of the compiler.
    """
    # imported here because it takes seconds and is only needed to compile
    compile_fx = importlib.import_module("torch._inductor.compile_fx")
    decompositions = importlib.import_module("torch._inductor.decomposition")
    config = importlib.import_module("torch._inductor.config")
    utilities = importlib.import_module("torch._functorch.compile_utils")
    lowering = importlib.import_module("torch._inductor.graph")
    run = torch.func.functionalize(lambda *values: graph_module(*values), remove="mutations")
    with warnings.catch_warnings(), torch.no_grad(), tracing_context(TracingContext(inputs.mode)):
        warnings.simplefilter("ignore")  # about the compiler's own decisions
        with inputs.mode:
            functional = make_fx(
                lambda *values: run(*values),
                decomposition_table={**decompositions.select_decomp_table(), **_SPELLED_OUT},
                tracing_mode="real",
            )(*inputs.values)
        functional.graph.eliminate_dead_code()
        # a backward uses the results of the forward instead of recomputing them
        functional.graph = utilities.fx_graph_cse(functional.graph)
        convolves = lowering.GraphLowering.decide_layout_opt(functional, is_inference=True)
        lay_out(functional, inputs.mode, inputs.values, strides, channels_last=convolves)
        options = {} if threads is None else {"cpp.threads": threads}
        with config.patch({"size_asserts": assertions, **options}):
            compiled = compile_fx.compile_fx_inner(functional, inputs.values, is_inference=True)
    function: Compiled = compiled.current_callable or compiled
    return function


def _norms(tensors: list[Tensor], ord: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.ops.aten.linalg_vector_norm(t, ord, dtype=dtype) for t in tensors]


_SPELLED_OUT: dict[Any, Callable[..., Any]] = {torch.ops.aten._foreach_norm.Scalar: _norms}
"""Decompositions of operators for which Inductor would otherwise call a library."""
