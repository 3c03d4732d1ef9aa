"""One trace: the graph, its inputs, the guards and the Python around it."""

from __future__ import annotations

import dis
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo import convert_frame
from torch._dynamo.utils import dynamo_timed, get_metrics_context

from stepgraph.torch_private.dynamo.guards import Guards, Keep, build_guards
from stepgraph.torch_private.dynamo.hooks import TraceHooks
from stepgraph.torch_private.dynamo.sources import source_name


@dataclass(frozen=True)
class FrameBytecode:
    """Dynamo's Python around a captured graph: collects inputs, writes results back."""

    bytecode: types.CodeType
    argdefs: tuple[Any, ...] | None
    kwdefaults: dict[str, Any] | None
    globals: dict[str, Any]
    compiled_name: str

    def function(
        self, compiled: Callable[..., Any], closure: tuple[Any, ...] | None
    ) -> Callable[..., Any]:
        """Return it as a function that calls `compiled`, a global name until `release`."""
        self.globals[self.compiled_name] = compiled
        function = types.FunctionType(
            self.bytecode, self.globals, "step", argdefs=self.argdefs, closure=closure
        )
        function.__kwdefaults__ = self.kwdefaults
        return function

    def release(self) -> None:
        """Remove the compiled function from the globals."""
        self.globals.pop(self.compiled_name, None)

    def loads_after_call(self) -> set[str]:
        """Return the attribute names that are loaded after the call of the compiled function.

        The bytecode has no branches. The call is the instruction after which the stack is as high
        as after the load of the function: its result replaces the function.
        """
        names: set[str] = set()
        height, floor, after = 0, None, False
        for instruction in dis.get_instructions(self.bytecode):
            if instruction.argval == self.compiled_name:
                floor = height + 1
            height += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
            is_call = instruction.opname.startswith("CALL")
            after = after or (is_call and floor is not None and height <= floor)
            if after and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                names.add(str(instruction.argval))
        return names


@dataclass(frozen=True)
class Traced:
    """One trace: the graph with autograd calls in it, its inputs, guards and bytecode."""

    graph_module: torch.fx.GraphModule
    sources: tuple[str, ...]
    values: tuple[Any, ...]
    code: types.CodeType
    around: FrameBytecode
    captured: Any

    def build_guards(
        self, keep: Keep, scope: Mapping[str, Any], *, fixed: re.Pattern[str]
    ) -> Guards:
        """Return the guards for which `keep` returns True, given `(name, guard type, value)`.

        Called after the graph has been flattened, which may add assumptions about sizes.

        Args:
            keep: The filter.
            scope: The local names of the traced call.
            fixed: Matches Dynamo's names of objects that are the same in every call.
        """
        names = {"G": self.around.globals, "L": scope}
        return build_guards(self.captured, self.code, names, keep, fixed)


def trace(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], hooks: TraceHooks
) -> Traced:
    """Trace `function` into one graph without running it.

    Raises:
        TraceStop: A hook ended the trace.
        Exception: Any exception of Dynamo's for a step that it cannot trace.
    """
    with get_metrics_context(), dynamo_timed("stepgraph.trace"):
        captured = convert_frame.fullgraph_capture(function, args, kwargs)
    output, backend_input = captured.graph_capture_output, captured.backend_input
    if backend_input is None:
        hooks.refuse("no tensor operation to capture")
        raise AssertionError("unreachable")
    if getattr(output.output_graph, "random_calls", None):
        hooks.refuse("host randomness: `random` is called inside the step")
    for fake in hooks.toggled:
        fake.requires_grad_(not fake.requires_grad)  # an odd number of changes leaves it changed
    hooks.toggled.clear()
    code, _ = convert_frame.get_traced_fn(function)
    graph_module = backend_input.graph_module
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    return Traced(
        graph_module=graph_module,
        sources=tuple(source_name(node._dynamo_source) for node in placeholders),
        values=tuple(map(_concrete, backend_input.example_inputs)),
        code=code.__code__,
        around=FrameBytecode(
            bytecode=output.bytecode,
            argdefs=output.argdefs,
            kwdefaults=output.kwdefaults,
            globals=output.f_globals,
            compiled_name=backend_input.backend_id,
        ),
        captured=captured,
    )


def _concrete(value: Any) -> Any:
    """Return the value of a symbolic input in the traced call; other inputs unchanged."""
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value
