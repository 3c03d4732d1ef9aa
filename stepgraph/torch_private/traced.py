"""One trace: the graph, its inputs, the guards and the Python around it."""

from __future__ import annotations

import contextlib
import dis
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo import convert_frame
from torch._dynamo.hooks import Hooks
from torch._dynamo.utils import dynamo_timed, get_metrics_context
from torch.distributions import utils as distributions_utils

from stepgraph.torch_private.hooks import TraceHooks
from stepgraph.torch_private.sources import source_name


@dataclass(frozen=True)
class Around:
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
        """Take the compiled function out of the globals."""
        self.globals.pop(self.compiled_name, None)

    def loads_after_call(self) -> set[str]:
        """Return the attribute names that are loaded after the compiled function was called.

        The bytecode is straight. The call is the one that leaves the stack as high as it was when
        the function was put there, its result in the function's place.
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
    around: Around
    captured: Any

    def build_guards(
        self,
        keep: Callable[[Sequence[tuple[str, str, Any]]], Sequence[bool]],
        scope: Mapping[str, Any],
    ) -> Any:
        """Return a guard manager; `keep` decides about `(name, guard type, value)` of each.

        Called after the graph has been flattened, which may add facts about sizes.

        Args:
            keep: The filter.
            scope: The local names of the traced call.
        """

        def filter_guards(entries: Sequence[Any]) -> Sequence[bool]:
            return keep([(e.name, e.guard_type, e.value if e.has_value else None) for e in entries])

        hooks = Hooks(guard_filter_fn=filter_guards)
        output = self.captured.graph_capture_output
        _drop_lost(output.output_graph.guards, {"G": self.around.globals, "L": scope})
        with get_metrics_context(), dynamo_timed("stepgraph.guards"):
            return output.build_guards(self.code, hooks=hooks).guard_manager


def trace(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], hooks: TraceHooks
) -> Traced:
    """Trace `function` into one graph without running it.

    Raises:
        TraceStop: A hook ended the trace.
        Exception: Whatever Dynamo raises when it cannot trace the step.
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
        around=Around(
            bytecode=output.bytecode,
            argdefs=output.argdefs,
            kwdefaults=output.kwdefaults,
            globals=output.f_globals,
            compiled_name=backend_input.backend_id,
        ),
        captured=captured,
    )


_LAZY = frozenset(
    name
    for found in vars(torch.distributions).values()
    for name, value in (vars(found).items() if isinstance(found, type) else ())
    if isinstance(value, distributions_utils.lazy_property)
)
_LAZY_PLACE = re.compile(rf"\.(?:{'|'.join(sorted(_LAZY))})\b")


def _drop_lost(guards: Any, scope: Mapping[str, Any]) -> None:
    """Drop guards on and below `lazy_property` of `torch.distributions`.

    Read from its class, such a property is another object every time, without what Dynamo found
    in it: a guard that never holds. They are torch's own code and stay what they are.
    """
    shown = getattr(distributions_utils, "_lazy_property_and_property", ())
    names = {guard: _names_in(guard) for guard in guards}
    places = {
        name[: lazy.end()]: None
        for several in names.values()
        for name in several
        for lazy in _LAZY_PLACE.finditer(name)
    }
    lost = []
    for place in places:
        with contextlib.suppress(NameError, AttributeError, LookupError, TypeError):
            if isinstance(eval(place, dict(scope)), shown):
                lost.append(place)
    for guard, several in names.items():
        if any(name == p or name.startswith(f"{p}.") for name in several for p in lost):
            guards.inner.discard(guard)


def _names_in(guard: Any) -> list[str]:
    """Return the sources that a guard reads: one, or two that must be the same object."""
    other = getattr(guard.create_fn, "keywords", {}).get("source_b")
    return [
        source_name(source) for source in (guard.originating_source, other) if source is not None
    ]


def _concrete(value: Any) -> Any:
    """Return the number that a symbolic input had in the traced call; other inputs as they are."""
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value
