"""Functions of Dynamo that our traces replace, one function for each."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch._C._dynamo.guards import GuardManager
from torch._dynamo import guards as dynamo_guards
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.output_graph import (
    OutputGraph,
    SubgraphTracer,
    collect_reachable_grad_fns,
)
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables import builder, builtin
from torch._dynamo.variables.base import AttributeMutationExisting, VariableTracker
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.functions import UserFunctionVariable
from torch._dynamo.variables.lists import CommonListMethodsVariable, ListVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

from stepgraph.torch_private.dynamo.hooks import FRAMES, LIVE_GRAPH, TraceHooks
from stepgraph.torch_private.dynamo.sources import source_name

_SETATTR = (  # where Dynamo traces an attribute store: a class of its own since torch 2.13
    (builtin.SetAttrBuiltinVariable, "_call_setattr")
    if hasattr(builtin, "SetAttrBuiltinVariable")
    else (builtin.BuiltinVariable, "call_setattr")
)


def replacements(hooks: TraceHooks) -> tuple[tuple[Any, str, Any], ...]:
    """Return `(owner, name, replacement)` of every function that a trace replaces."""
    found: tuple[tuple[Any, str, Any], ...] = (
        (TensorVariable, "method_backward", _traced_backward(hooks)),
        (TensorVariable, "method_requires_grad_", _traced_requires_grad_(hooks)),
        (SideEffects, "store_attr", _store_attr(hooks)),
        (*_SETATTR, _call_setattr(hooks)),
        (SideEffects, "mutation", _mutation(hooks)),
        (SideEffects, "codegen_save_tempvars", _without_gradients()),
        (builder, "make_dupe_guard", _duplicate_guard),
        (SubgraphTracer, "create_proxy", _create_proxy()),
        (UserFunctionVariable, "call_function", _call_function(hooks)),
        (VariableBuilder, "_wrap", _wrap(hooks)),
        (OutputGraph, "_validate_outputs_safe_for_autograd_nodes", _check_outputs(hooks)),
        *hooks.functions,
    )
    if hasattr(dynamo_guards, "profile_guard_manager"):
        # times the guards for one of Dynamo's logs, after flushing the processor's caches: a fifth
        # of the time of a capture
        found += ((dynamo_guards, "profile_guard_manager", lambda *_: 0.0),)
    if hasattr(GuardManager, "add_dimension_marking_guard"):
        # compares five attributes of every tensor, in case a dimension is marked dynamic after the
        # capture: a variant for fixed sizes is correct for marked tensors of these sizes too
        found += ((GuardManager, "add_dimension_marking_guard", lambda *_: None),)
    if hasattr(OutputGraph, "_check_requires_grad_intermediate_outputs"):
        # guards against a defect of AOTAutograd, which is not used; `_check_outputs` is ours
        ignored = (OutputGraph, "_check_requires_grad_intermediate_outputs", lambda *_: None)
        found += (ignored,)
    return found


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
            leaves, allow_unused = _leaves(known), True
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


def _leaves(variables: Iterable[VariableTracker]) -> list[VariableTracker]:
    """Return the leaves among traced tensors, those that the step itself made included.

    Dynamo has this function too; until torch 2.11 it passes over the latter.
    """
    found: dict[Any, VariableTracker] = {}
    for variable in variables:
        if not isinstance(variable, TensorVariable) or variable.has_grad_fn:
            continue
        if variable.requires_grad:
            found.setdefault(variable.as_proxy().node, variable)
    return list(found.values())


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
            hooks.on_store(item.value, name)
        original(self, item, name, value, *args, **kw)

    return store_attr


def _without_gradients() -> Callable[..., None]:
    """Return the first stage of Dynamo's write-back, without `.grad`: the program stores it."""
    original = SideEffects.codegen_save_tempvars

    def codegen_save_tempvars(self: Any, cg: Any) -> None:
        for item, stored in self.store_attr_mutations.items():
            if isinstance(item, TensorVariable) and isinstance(
                item.mutation_type, AttributeMutationExisting
            ):
                stored.pop("grad", None)
        original(self, cg)

    return codegen_save_tempvars


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


def _create_proxy() -> Callable[..., Any]:
    """Return the function that makes nodes, extended to record the code being traced.

    Dynamo records it as text, in which a user's function may have the name of one of torch's.
    """
    original = SubgraphTracer.create_proxy

    def create_proxy(self: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = original(self, *args, **kwargs)
        frames, frame = [], self.output_graph.current_tx
        while frame is not None:
            frames.append((frame.f_code, frame.lineno))
            frame = getattr(frame, "parent", None)
        proxy.node.meta[FRAMES] = tuple(reversed(frames))
        return proxy

    return create_proxy


def _call_function(hooks: TraceHooks) -> Callable[..., Any]:
    """Return the function that inlines a Python function, or its replacement."""
    original = UserFunctionVariable.call_function

    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        for function, replacement, caller in hooks.inlined:
            own = getattr(replacement, "__code__", None)
            called = tx.f_code is not own and (caller is None or tx.f_code is caller)
            if called and self.fn is function:
                other = VariableTracker.build(tx, replacement)
                return other.call_function(tx, args, kwargs)
        return original(self, tx, args, kwargs)

    return call_function


def _wrap(hooks: TraceHooks) -> Callable[..., Any]:
    original = VariableBuilder._wrap

    def wrap(self: Any, value: Any) -> Any:
        hooks.on_object(value)
        if hooks.is_tracked(value) and not isinstance(value, torch.nn.Module | list | deque):
            # no OptimizerVariable: it would trace torch's own optimizer code and state
            self.install_guards(GuardBuilder.TYPE_MATCH, GuardBuilder.ID_MATCH)
            plain = UserDefinedObjectVariable(value, source=self.source)
            return self.tx.output.side_effects.track_object_existing(value, plain)
        return original(self, value)

    return wrap


def _duplicate_guard(source: Any, other: Any) -> Any:
    """Guard that two names refer to one object, also if one is local and the other global.

    Dynamo skips that case; here it is the usual one: a parameter is in the global table of tracked
    objects and an attribute of a local model.
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
            hooks.on_list_change(var.source, resolve(var.source), resolve)
        original(self, var)

    return mutation


def _resolve(output: Any, source: Any) -> Any:
    """Return the real object that `source` describes."""
    scope = {"L": output.root_tx.f_locals, "G": output.root_tx.f_globals}
    return eval(source_name(source), scope)  # Dynamo's own guards are evaluated the same way


def _check_outputs(hooks: TraceHooks) -> Callable[..., None]:
    """Return the check of the outputs of the graph.

    A tensor whose autograd graph a backward has consumed is returned detached. The step is refused
    if eager would let the caller use the autograd graph of an output.
    """

    def check(self: Any, rv: list[Any], tx: Any) -> None:
        consumed = self.autograd_grad_consumed_grad_fns
        for variable in rv:
            if not isinstance(variable, TensorVariable) or variable.source is not None:
                continue
            node = variable.as_proxy().node
            fake = node.meta.get("example_value")
            if not isinstance(fake, torch.Tensor) or not fake.requires_grad:
                continue
            reachable = collect_reachable_grad_fns([(fake, None)])
            if fake.grad_fn is None or not reachable & consumed:
                hooks.refuse(LIVE_GRAPH, node)

    return check
