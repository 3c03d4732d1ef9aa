"""Capture one call of the user's step: a flat graph and guards, without side effects."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from stepgraph import torch_private
from stepgraph.capture.call_scope import globals_in, scope_reader
from stepgraph.capture.checks.dtypes import check_dtypes
from stepgraph.capture.checks.preconditions import tensor_reason
from stepgraph.capture.checks.split import check_parts
from stepgraph.capture.checks.update_scope import mark_transparent
from stepgraph.capture.checks.window import check_window
from stepgraph.capture.objects import (
    TrackedList,
    TrackedObject,
    TrackedObjects,
    TrackedOptimizer,
)
from stepgraph.capture.objects.discover import discover
from stepgraph.capture.options import split_loop
from stepgraph.capture.options.call_options import DEFAULT, CallOptions
from stepgraph.capture.refusal import Refusal, refusal_of, refuse
from stepgraph.capture.tracing.flatten import flatten, has_symbolic_sizes
from stepgraph.capture.tracing.guard_filter import CONSTANT_NAMES, guard_filter
from stepgraph.capture.tracing.names import name_objects, slots
from stepgraph.capture.tracing.trace_hooks import NewObject, StepTraceHooks
from stepgraph.effects import SET_GRAD, effect_of
from stepgraph.errors import ConfigurationError
from stepgraph.torch_private import FrameBytecode, Traced

_MAX_RESTARTS = 64
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Captured:
    """The result of one trace of a step.

    Attributes:
        flat: The flat ATen graph, in program order.
        around: Dynamo's bytecode around the graph: collects its inputs, writes results back.
        guards: The guards of the trace, without those on stand-ins.
        subjects: The tracked objects that effects of the graph act on, by number.
        inputs: The real inputs of the traced call, in the order of the placeholders.
        written: Attributes of tracked objects that Python stores to when the graph has run.
    """

    flat: GraphModule
    around: FrameBytecode
    guards: torch_private.Guards
    subjects: dict[int, TrackedObject]
    inputs: tuple[Any, ...]
    written: frozenset[str] = frozenset()

    @property
    def optimizers(self) -> list[TrackedOptimizer]:
        """The optimizers that the step updates or whose gradients it clears."""
        return [s for s in self.subjects.values() if isinstance(s, TrackedOptimizer)]


def capture(
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    objects: TrackedObjects,
    options: CallOptions = DEFAULT,
    dynamic: Sequence[str] = (),
) -> Captured:
    """Trace `function(*args, **kwargs)` without running it.

    Args:
        function: The user's step, undecorated and unbound.
        args: Positional arguments, `self` included.
        kwargs: Keyword arguments.
        objects: The objects that earlier traces found. Extended.
        options: The options of the call.
        dynamic: Dynamo's names of int and float inputs that vary between calls.

    Raises:
        Refusal: The step cannot be captured; nothing has changed.
        ConfigurationError: The options do not apply to this step; nothing has changed.
    """
    objects.refresh()
    hooks = StepTraceHooks(objects, function, options)
    try:
        with _LOCK, _without_side_effects(function):
            return _captured(function, args, kwargs, hooks, dynamic)
    finally:
        hooks.stopped = None  # it holds the frames of a trace, which hold these hooks


def _captured(
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    hooks: StepTraceHooks,
    dynamic: Sequence[str],
) -> Captured:
    """Trace until no new object is found, with constant sizes if symbolic sizes fail."""
    for _ in range(_MAX_RESTARTS):
        try:
            return _Capture(function, args, kwargs, hooks, dynamic).run()
        except NewObject:
            continue
        except (Refusal, ConfigurationError):
            raise
        except Exception as error:  # the capture boundary: any failure means eager
            symbolic = hooks.symbolic or "SymInt" in str(error)
            if not symbolic or hooks.static_sizes:
                raise refusal_of(error) from error
            hooks.static_sizes = True  # an operator that cannot take symbolic sizes
    raise Refusal("every trace found new optimizers or lists")


class _Capture:
    """One attempt at a capture, in stages; each stage stores the input of the next one."""

    def __init__(
        self,
        function: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        hooks: StepTraceHooks,
        dynamic: Sequence[str],
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.hooks, self.objects, self.options = hooks, hooks.objects, hooks.options
        self.dynamic = dynamic

    def run(self) -> Captured:
        """Name the inputs, trace, flatten, build the guards, check what was captured."""
        self.hooks.restart()
        local_names = self.local_names()
        names = local_names | globals_in(self.function, local_names)
        discover(self.objects, names.values())
        try:
            with self.tracing():
                found = torch_private.trace(
                    self.function, self.args, self.kwargs, self.hooks.trace_hooks
                )
                self.hooks.raise_stopped()
                self.hooks.symbolic = has_symbolic_sizes(found.graph_module)
                _check_trace(found)
                recast = self.options.autocast is not None
                flat = flatten(found.graph_module, refuse, recast=recast)
                _label(flat, found, self.objects, names)
                keep = guard_filter(self.objects)
                guards = found.build_guards(keep, local_names, fixed=CONSTANT_NAMES)
        except Exception:
            self.hooks.raise_stopped()
            raise
        if not guards.check(local_names):
            refuse(f"guards do not hold outside of the trace: {guards.failing(local_names)}")
        acted_on = self.acted_on(flat)
        mark_transparent(flat, acted_on, found.values)
        self.check_options(flat, found, acted_on)
        return Captured(flat, found.around, guards, acted_on, found.values, self.written())

    def local_names(self) -> dict[str, Any]:
        """Return the arguments and closure variables of the call by name."""
        names = scope_reader(self.function)(self.args, self.kwargs)
        if names is None:
            refuse("the arguments do not fit the signature, or a closure variable is unset")
        return names

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Scope in which Dynamo traces, and stand-ins replace methods of tracked objects."""
        scope = torch_private.tracing(
            self.hooks.trace_hooks,
            self.dynamic,
            self.objects.seen,
            static=self.hooks.static_sizes,
        )
        with_stand_ins = self.objects.with_stand_ins(self.options)
        with scope, with_stand_ins, split_loop.before_each_part(self.hooks.begin):
            yield

    def acted_on(self, flat: GraphModule) -> dict[int, TrackedObject]:
        """Return the objects that effects in the graph act on, and all lists, by number."""
        numbers = (number for node in flat.graph.nodes for number in _object_numbers(node))
        acted_on = {number: self.objects[number] for number in numbers}
        lists = (tracked for tracked in self.objects.all if isinstance(tracked, TrackedList))
        return acted_on | {tracked.number: tracked for tracked in lists}

    def check_options(
        self, flat: GraphModule, found: Traced, acted_on: dict[int, TrackedObject]
    ) -> None:
        """Check that the options apply to the captured graph.

        Raises:
            ConfigurationError: They do not.
        """
        check_dtypes(self.options, acted_on.values())
        if self.options.micro_batches > 1:
            check_window(flat.graph, self.objects, "accumulate")
        if self.options.split.splits:
            check_window(flat.graph, self.objects, "microbatches")
            check_parts(flat.graph, found.graph_module, self.options.split)

    def written(self) -> frozenset[str]:
        """Return the attributes of tracked objects that traced Python stores to."""
        owners = ((self.objects.find(owner), name) for owner, name in self.hooks.written)
        return frozenset(f"{owner.label}.{name}" for owner, name in owners if owner is not None)


def _check_trace(found: Traced) -> None:
    """Refuse a graph whose replay would differ from the step."""
    graph_module = found.graph_module
    reason = tensor_reason(found.values)
    if reason is not None:
        refuse(reason)
    for node in graph_module.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(getattr(graph_module, target, None), Tensor):
            refuse("the graph holds a tensor that is not an input of the step")
        if "register_hook" in target or "register_post_accumulate" in target:
            refuse("registers hooks inside the step")
        if target == "__delattr__":
            refuse("deletes an attribute of a tensor")
        if "manual_seed" in target or "set_rng_state" in target:
            refuse("host randomness: seeds inside the step")
    replaced = any(node.target is SET_GRAD.op for node in graph_module.graph.nodes)
    if replaced and found.around.loads_after_call() & {"grad", "_grad"}:
        refuse("keeps a gradient that the step replaces")


def _label(
    flat: GraphModule, found: Traced, objects: TrackedObjects, names: dict[str, Any]
) -> None:
    """Write the names of inputs and tracked objects into the metadata of the flat graph."""
    placeholders = [node for node in flat.graph.nodes if node.op == "placeholder"]
    known = slots(found.sources, found.values, names)
    for node, slot in zip(placeholders, known, strict=True):
        node.meta["stepgraph.slot"] = slot
    name_objects(objects, names)
    for node in flat.graph.nodes:
        numbers = _object_numbers(node)
        if numbers:
            node.meta["stepgraph.label"] = objects[numbers[0]].label
            owners = [getattr(objects[n].value, "optimizer", None) for n in numbers]
            node.meta["stepgraph.hyper"] = [
                (objects.find(owner) or objects[n]).label
                for owner, n in zip(owners, numbers, strict=True)
            ]


def _object_numbers(node: Node) -> tuple[int, ...]:
    """Return the numbers of the tracked objects that an effect acts on."""
    effect = effect_of(node.target)
    if effect is None:
        return ()
    return tuple(effect.argument(node, name) for name in effect.object_arguments)


@contextlib.contextmanager
def _without_side_effects(function: FunctionType) -> Iterator[None]:
    """Restore random state and, when a capture fails, the names Dynamo put into globals.

    When it succeeds, only the results of our own trace-time functions are removed: Dynamo stores
    them as constants under the names of the functions, `_updates` as `sub_updates`.
    """
    before = set(function.__globals__)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    except BaseException:
        for name in set(function.__globals__) - before:
            del function.__globals__[name]
        raise
    else:
        for name in set(function.__globals__) - before:
            if name.startswith("sub_"):
                del function.__globals__[name]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
