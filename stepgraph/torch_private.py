"""Every private part of torch that stepgraph touches, and nothing else.

TorchDynamo is used as a tracer: it turns the Python of a training step into one FX graph, gives
the facts it relied on as guards, and the Python writes of the step as bytecode. Its code cache is
not used. Written against torch 2.11 to 2.13; `stepgraph.capture.self_test` finds out whether the
torch at hand behaves as expected before anything is captured.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import logging
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from unittest import mock

import torch
import torch._dynamo.config as dynamo_config
from torch._dynamo import convert_frame, exc
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.hooks import Hooks
from torch._dynamo.output_graph import OutputGraph, collect_reachable_grad_fns
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.utils import dynamo_timed, get_metrics_context
from torch._dynamo.variables import builder, builtin, constant
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.lists import CommonListMethodsVariable, ListVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._dynamo.variables.user_defined import UserDefinedObjectVariable
from torch.distributions import utils as distributions_utils

TRACE_CONFIG: Mapping[str, Any] = {
    "trace_autograd_ops": True,  # `backward()` becomes part of the graph
    "trace_numpy": False,  # else NumPy's randomness is drawn from torch's generator
    "capture_scalar_outputs": True,  # `.item()` becomes a node
    "allow_rnn": True,
    "allow_unspec_int_on_nn_module": True,  # counters on a module: the second value is symbolic
    "rewrite_assert_with_torch_assert": False,  # keeps AssertionError an AssertionError
    "skip_nnmodule_hook_guards": False,
    "skip_no_tensor_aliasing_guards_on_parameters": False,  # two weights may be tied later
    "suppress_errors": False,
    "error_on_recompile": False,
    "enable_dynamo_decompositions": False,  # `add_(x, alpha=a)` rounds once, not twice
    "verbose": False,
    "record_runtime_overhead": False,  # it would measure in every call
}

_SETATTR = (  # where Dynamo traces an attribute store: a class of its own since torch 2.13
    (builtin.SetAttrBuiltinVariable, "_call_setattr")
    if hasattr(builtin, "SetAttrBuiltinVariable")
    else (builtin.BuiltinVariable, "call_setattr")
)


_COMPILER_CONFIG: Any = torch.compiler.config  # its `patch` is added at import


class TraceStop(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by a hook of ours to end a trace; never leaves the capture floor."""


@dataclass
class TraceHooks:
    """What the capture floor puts in the place of parts of Dynamo while it traces.

    Attributes:
        meet: Called with every user object that the trace wraps; may raise `TraceStop`.
        backward: Python function that Dynamo inlines for `loss.backward(...)`; called with
            `(loss, leaves, gradient, retain_graph, allow_unused)`.
        set_grad: Operator left in the graph wherever Python stores to `.grad` of an input.
        toggle: Operator left in the graph wherever Python changes `requires_grad`.
        functions: Functions of torch that a trace replaces: `(module, name, replacement)`.
        quiet: Code objects whose own stores to `.grad` leave no `set_grad`.
        toggled: Fake tensors whose flag the trace has changed, once for every change.
        refuse: Called with a reason to refuse the step; raises `TraceStop`.
        write: Called with a user object and the name of an attribute that is stored to.
    """

    meet: Callable[[Any], None]
    backward: Callable[..., None]
    set_grad: Any
    toggle: Any
    refuse: Callable[[str], None]
    grow: Callable[[Any, Any, Callable[[Any], Any]], None]
    is_subject: Callable[[Any], bool]
    write: Callable[[Any, str], None]
    functions: Sequence[tuple[Any, str, Any]] = ()
    quiet: set[types.CodeType] = field(default_factory=set)
    toggled: list[Any] = field(default_factory=list)


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
        sources=tuple(_name(node._dynamo_source) for node in placeholders),
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


@contextlib.contextmanager
def tracing(hooks: TraceHooks, dynamic: Sequence[str], *, static: bool = False) -> Iterator[None]:
    """Scope in which `trace` may be called; everything is as before when it is left.

    Args:
        hooks: The capture floor's hooks.
        dynamic: Names of int and float inputs, as Dynamo spells them, that are known to vary.
        static: Take every size as a constant, also one that has varied.
    """
    options = {**TRACE_CONFIG, "automatic_dynamic_shapes": not static}
    replacements: tuple[tuple[Any, str, Any], ...] = (
        (TensorVariable, "method_backward", _traced_backward(hooks)),
        (TensorVariable, "method_requires_grad_", _traced_requires_grad_(hooks)),
        (SideEffects, "store_attr", _store_attr(hooks)),
        (*_SETATTR, _call_setattr(hooks)),
        (SideEffects, "mutation", _mutation(hooks)),
        (builder, "make_dupe_guard", _duplicate_guard),
        (VariableBuilder, "_wrap", _wrap(hooks)),
        (OutputGraph, "_validate_outputs_safe_for_autograd_nodes", _check_outputs(hooks)),
        *hooks.functions,
    )
    if hasattr(OutputGraph, "_check_requires_grad_intermediate_outputs"):
        # guards against a defect of AOTAutograd, which is not used; `_check_outputs` is ours
        ignored = (OutputGraph, "_check_requires_grad_intermediate_outputs", lambda *_: None)
        replacements += (ignored,)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dynamo_config.patch(**_known(options)))
        stack.enter_context(_COMPILER_CONFIG.patch(dynamic_sources=",".join(dynamic)))
        stack.enter_context(shield_constants())
        for name in ("torch._guards", "torch._dynamo"):  # a refusal is no error of the user's
            stack.enter_context(mock.patch.object(logging.getLogger(name), "disabled", True))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the user's warnings belong to the eager call
        for owner, name, replacement in replacements:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `options` that this torch has."""
    return {name: value for name, value in options.items() if hasattr(dynamo_config, name)}


@contextlib.contextmanager
def shield_constants() -> Iterator[None]:
    """Keep Dynamo's process-wide None, True and False free of a source.

    Reading `p.grad` or `p.requires_grad` in a trace of torch 2.13 gives these singletons a
    `.source` that they keep: every later None, in any compiled function of the process, would
    then read that attribute. Torch 2.11 does not, and compares their exact type.
    """
    if torch.__version__ < "2.12":
        yield
        return
    names = ("CONSTANT_VARIABLE_NONE", "CONSTANT_VARIABLE_TRUE", "CONSTANT_VARIABLE_FALSE")
    shielded = []
    for name in names:
        variable = getattr(constant, name, None)
        if variable is not None:
            base = type(variable)
            ignored = property(lambda self: None, lambda self, value: None)
            variable.__class__ = type(base.__name__, (base,), {"source": ignored})
            shielded.append((variable, base))
    try:
        yield
    finally:
        for variable, base in shielded:
            variable.__class__ = base


def _traced_backward(hooks: TraceHooks) -> Callable[..., Any]:
    """Return the trace of `loss.backward(...)`: our own function, inlined.

    Dynamo's rewrite returns silently when it finds no leaf; this one refuses.
    """

    def method_backward(
        self: Any,
        tx: Any,
        gradient: Any = None,
        retain_graph: Any = None,
        create_graph: Any = None,
        inputs: Any = None,
    ) -> Any:
        none = ConstantVariable.create(None)
        if create_graph is not None and create_graph.as_python_constant():
            hooks.refuse("backward(create_graph=True) leaves gradients with a live graph")
        if inputs is None or (inputs.is_python_constant() and inputs.as_python_constant() is None):
            known = chain(
                getattr(tx.output, "leaf_var_creation_order", ()),
                tx.output.input_source_to_var.values(),
            )
            leaves, allow_unused = self._collect_backward_inputs(known), True
        else:
            given = getattr(inputs, "items", None) or [inputs]
            leaves = self._collect_backward_inputs(given, error_on_non_leaf=True)
            allow_unused = False
        if not leaves:
            hooks.refuse("backward() reached no leaf among the inputs of the step")
        VariableTracker.build(tx, hooks.backward).call_function(
            tx,
            [
                self,
                ListVariable(list(leaves)),
                gradient or none,
                retain_graph or none,
                ConstantVariable.create(allow_unused),
            ],
            {},
        )
        return none

    return method_backward


def _store_attr(hooks: TraceHooks) -> Callable[..., Any]:
    """Return `SideEffects.store_attr` that also leaves `set_grad` where `.grad` is stored.

    Dynamo performs attribute writes when the step has ended. Gradients are read by optimizers in
    the middle of it, so the runtime stores them itself, in program order.
    """
    original = SideEffects.store_attr

    def store_attr(
        self: Any, item: VariableTracker, name: str, value: VariableTracker, *args: Any, **kw: Any
    ) -> None:
        if name == "grad" and isinstance(item, TensorVariable) and item.source is not None:
            output = self.output_graph_weakref()
            if output.current_tx.f_code not in hooks.quiet:
                is_none = value.is_python_constant()
                grad = None if is_none else value.as_proxy()
                output.create_proxy("call_function", hooks.set_grad, (item.as_proxy(), grad), {})
        if item.source is not None and hasattr(item, "value"):
            hooks.write(item.value, name)
        original(self, item, name, value, *args, **kw)

    return store_attr


def _traced_requires_grad_(hooks: TraceHooks) -> Callable[..., Any]:
    original = TensorVariable.method_requires_grad_

    def method_requires_grad_(self: Any, tx: Any, requires_grad: Any = True) -> Any:
        flag = requires_grad if requires_grad is True else requires_grad.as_python_constant()
        if self.source is None and torch.__version__ >= "2.12":
            return original(self, tx, requires_grad)
        _toggle(hooks, tx, self, flag)
        return self

    return method_requires_grad_


def _call_setattr(hooks: TraceHooks) -> Callable[..., Any]:
    original = getattr(*_SETATTR)

    def call_setattr(self: Any, tx: Any, obj: Any, name_var: Any, val: Any) -> Any:
        tensor = obj.realize() if hasattr(obj, "realize") else obj
        if isinstance(tensor, TensorVariable) and name_var.is_python_constant():
            name = name_var.as_python_constant()
            if name == "requires_grad" and tensor.source is not None:
                _toggle(hooks, tx, tensor, val.as_python_constant())
                return val
            if name == "data":
                hooks.refuse("assigns `.data` of a tensor")
        return original(self, tx, obj, name_var, val)

    return call_setattr


def _toggle(hooks: TraceHooks, tx: Any, tensor: Any, flag: bool) -> None:
    """Leave a marker and change the flag of the traced tensor, as eager does."""
    fake = tensor.as_proxy().node.meta["example_value"]
    if fake.requires_grad == flag:
        return
    if fake.grad_fn is not None:
        hooks.refuse("changes requires_grad of a tensor that is not a leaf")
    tx.output.create_proxy("call_function", hooks.toggle, (tensor.as_proxy(), flag), {})
    hooks.toggled.append(fake)
    fake.requires_grad_(flag)
    tensor.requires_grad = flag
    if tensor.source is None and flag:
        tx.output.leaf_var_creation_order.append(tensor)
        none = ConstantVariable.create(None)
        tx.output.side_effects.store_attr(tensor, "grad", none)


def _wrap(hooks: TraceHooks) -> Callable[..., Any]:
    original = VariableBuilder._wrap

    def wrap(self: Any, value: Any) -> Any:
        hooks.meet(value)
        if hooks.is_subject(value) and not isinstance(value, torch.nn.Module | list | deque):
            # no OptimizerVariable: it would trace torch's own optimizer code and state
            self.install_guards(GuardBuilder.TYPE_MATCH, GuardBuilder.ID_MATCH)
            plain = UserDefinedObjectVariable(value, source=self.source)
            return self.tx.output.side_effects.track_object_existing(value, plain)
        return original(self, value)

    return wrap


def _duplicate_guard(source: Any, other: Any) -> Any:
    """Guard that two names mean one object, also where one is local and the other global.

    Dynamo leaves that case out; here it is the usual one: a parameter is a global of the table of
    subjects and an attribute of a local model.
    """
    if other is None or other == source:
        return None
    return functools.partial(GuardBuilder.DUPLICATE_INPUT, source_b=other)


def _mutation(hooks: TraceHooks) -> Callable[..., None]:
    original = SideEffects.mutation

    def mutation(self: Any, var: VariableTracker) -> None:
        if isinstance(var, CommonListMethodsVariable) and var.source is not None:
            output = self.output_graph_weakref()
            resolve = functools.partial(_resolve, output)
            hooks.grow(var.source, resolve(var.source), resolve)
        original(self, var)

    return mutation


def _resolve(output: Any, source: Any) -> Any:
    """Return the real object that `source` describes."""
    scope = {"L": output.root_tx.f_locals, "G": output.root_tx.f_globals}
    return eval(_name(source), scope)  # Dynamo's own guards are evaluated the same way


def _drop_lost(guards: Any, scope: Mapping[str, Any]) -> None:
    """Drop guards on and below `lazy_property` of `torch.distributions`.

    Read from its class, such a property is another object every time, without what Dynamo found
    in it: a guard that never holds. They are torch's own code and stay what they are.
    """
    shown = getattr(distributions_utils, "_lazy_property_and_property", ())
    names = {guard: _names_in(guard) for guard in guards}
    found = [name for several in names.values() for name in several if ".wrapped" in name]
    lost = []
    for place in dict.fromkeys(name.partition(".wrapped")[0] for name in found):
        with contextlib.suppress(NameError, AttributeError, LookupError):
            if isinstance(eval(place, dict(scope)), shown):
                lost.append(place)
    for guard, several in names.items():
        if any(name == p or name.startswith(f"{p}.") for name in several for p in lost):
            guards.inner.discard(guard)


def _names_in(guard: Any) -> list[str]:
    """Return the sources that a guard reads: one, or two that must be the same object."""
    other = getattr(guard.create_fn, "keywords", {}).get("source_b")
    return [_name(source) for source in (guard.originating_source, other) if source is not None]


def _check_outputs(hooks: TraceHooks) -> Callable[..., None]:
    """Return the check of what leaves the graph.

    A tensor whose graph a backward consumed comes back detached. One whose graph eager would let
    the caller use is refused.
    """

    def check(self: Any, rv: list[Any], tx: Any) -> None:
        consumed = self.autograd_grad_consumed_grad_fns
        for variable in rv:
            if not isinstance(variable, TensorVariable) or variable.source is not None:
                continue
            fake = variable.as_proxy().node.meta.get("example_value")
            if not isinstance(fake, torch.Tensor) or not fake.requires_grad:
                continue
            reachable = collect_reachable_grad_fns([(fake, None)])
            if fake.grad_fn is None or not reachable & consumed:
                hooks.refuse("returns or stores a tensor with a live graph")

    return check


def is_unsupported(error: BaseException) -> bool:
    """Return whether `error` is Dynamo saying that it cannot trace something."""
    return isinstance(error, exc.TorchDynamoException)


def user_stack(error: BaseException) -> Any:
    """Return the user's stack at the place where Dynamo gave up, or None."""
    return getattr(error, "real_stack", None)


def _name(source: Any) -> str:
    """Return Dynamo's spelling of a source: a method until torch 2.11, a property since."""
    return str(source.name() if callable(source.name) else source.name)


def _concrete(value: Any) -> Any:
    """Return the number that a symbolic input had in the traced call; other inputs as they are."""
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value
