"""From a call of the user's step to one flat graph, its guards, and nothing changed."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from stepgraph import torch_private
from stepgraph.capture.call_scope import globals_in, scope_reader
from stepgraph.capture.checks.dtypes import check_types
from stepgraph.capture.checks.preconditions import object_reason, tensor_reason
from stepgraph.capture.checks.split import check_parts
from stepgraph.capture.checks.update_scope import mark_transparent
from stepgraph.capture.checks.window import check_window
from stepgraph.capture.objects import stand_ins
from stepgraph.capture.objects.discover import meet_ahead
from stepgraph.capture.objects.list_location import holder_of
from stepgraph.capture.objects.registry import (
    ListSubject,
    OptimizerSubject,
    ScalerSubject,
    Subject,
    Subjects,
    is_growing,
    subject_class,
    zero_step_codes,
)
from stepgraph.capture.options import current, split_loop
from stepgraph.capture.options.call_options import (
    PLAIN,
    Terms,
    clip_nothing,
    clipping_by,
    clipping_with,
    without_clipping,
)
from stepgraph.capture.options.microbatches import Part
from stepgraph.capture.refusal import Refusal, refusal_of, refuse
from stepgraph.capture.tracing.flatten import flatten, has_symbolic_sizes, user_line
from stepgraph.capture.tracing.names import name_subjects, slots
from stepgraph.errors import ConfigurationError
from stepgraph.ir.markers import MARKERS, OPS
from stepgraph.torch_private import LIVE_GRAPH, Around, Traced, TraceHooks, TraceStop

_MAX_RESTARTS = 64
_TRY = {LIVE_GRAPH: "`.detach()` it, or let a backward in the step consume its graph"}
_LOCK = threading.RLock()
_FUNCTIONS = (
    (torch, "_is_all_true", stand_ins.is_all_true),
    (torch.distributions.constraints, "is_dependent", stand_ins.is_dependent),
    (torch.optim.Optimizer, "zero_grad", stand_ins.zero_grad_of_base),
)
_REPLACED_FUNCTIONS = [
    *(replacement for _, _, replacement in _FUNCTIONS),
    clip_nothing,
    stand_ins.refuse_clipping,
    current.clip_to_norm_in_time,
    current.clip_value_in_time,
]


@dataclass(frozen=True)
class Captured:
    """What one trace of a step gave.

    Attributes:
        flat: The flat ATen graph, in program order.
        around: Dynamo's Python around the graph: collects its inputs, writes results back.
        guards: What must hold of a call, without the guards that went through stand-ins.
        subjects: The subjects that the graph's markers name, by number.
        inputs: The real inputs of the traced call, in the order of the placeholders.
        written: Attributes of subjects that Python stores to when the graph has run.
    """

    flat: GraphModule
    around: Around
    guards: torch_private.Guards
    subjects: dict[int, Subject]
    inputs: tuple[Any, ...]
    written: frozenset[str] = frozenset()

    @property
    def optimizers(self) -> list[OptimizerSubject]:
        """The optimizers it steps or clears."""
        return [s for s in self.subjects.values() if isinstance(s, OptimizerSubject)]


class _Met(TraceStop):
    """A trace met a subject for the first time."""


def capture(
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    subjects: Subjects,
    terms: Terms = PLAIN,
    dynamic: Sequence[str] = (),
) -> Captured:
    """Trace `function(*args, **kwargs)` without running it.

    Args:
        function: The user's step, undecorated and unbound.
        args: Positional arguments, `self` included.
        kwargs: Keyword arguments.
        subjects: What earlier traces met; extended.
        terms: The terms of the call.
        dynamic: Dynamo's names of int and float inputs that vary between calls.

    Raises:
        Refusal: The step cannot be captured; nothing has changed.
        ConfigurationError: The terms have no meaning for this step; nothing has changed.
    """
    subjects.refresh()
    hooks = _Hooks(subjects, function, terms)
    with _LOCK, _nothing_changes(function):
        for _ in range(_MAX_RESTARTS):
            try:
                return _capture_once(function, args, kwargs, hooks, dynamic)
            except _Met:
                continue
            except (Refusal, ConfigurationError):
                raise
            except Exception as error:  # the capture boundary: any failure means eager
                symbolic = hooks.symbolic or "SymInt" in str(error)
                if not symbolic or hooks.static_sizes:
                    raise refusal_of(error) from error
                hooks.static_sizes = True  # an operator that cannot take symbolic sizes
    raise Refusal("met new optimizers or lists in every trace")


def _capture_once(
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    hooks: _Hooks,
    dynamic: Sequence[str],
) -> Captured:
    subjects = hooks.subjects
    hooks.stopped, hooks.written = None, []
    current.PLACE.terms = hooks.terms
    local_names = scope_reader(function)(args, kwargs)
    if local_names is None:
        refuse("the arguments do not fit the signature, or a closure variable is unset")
    names = local_names | globals_in(function, local_names)
    meet_ahead(subjects, names.values())
    try:
        scope = torch_private.tracing(
            hooks.trace_hooks, dynamic, subjects.seen, static=hooks.static_sizes
        )
        standing_in = subjects.standing_in(hooks.terms)
        with scope, standing_in, hooks.withheld(), split_loop.beginning(hooks.begin):
            found = torch_private.trace(function, args, kwargs, hooks.trace_hooks)
            hooks.raise_stopped()
            hooks.symbolic = has_symbolic_sizes(found.graph_module)
            _check_trace(found)
            recast = hooks.terms.autocast is not None
            flat = flatten(found.graph_module, refuse, recast=recast)
            _label(flat, found, subjects, names)
            guards = found.build_guards(_guard_filter(subjects), local_names, fixed=_FIXED)
    except Exception:
        hooks.raise_stopped()
        raise
    if not guards.check(local_names):
        refuse(f"guards do not hold outside of the trace: {guards.failing(local_names)}")
    acted_on = {
        node.args[i]: subjects[node.args[i]]
        for node in flat.graph.nodes
        for i in _subject_arguments(node.target)
    }
    acted_on |= {s.number: s for s in subjects.all if isinstance(s, ListSubject)}
    mark_transparent(flat, acted_on, found.values)
    check_types(hooks.terms, acted_on.values())
    if hooks.terms.micro_batches > 1:
        check_window(flat.graph, subjects, "accumulate")
    if hooks.terms.split.splits:
        check_window(flat.graph, subjects, "microbatches")
        check_parts(flat.graph, found.graph_module, hooks.terms.split)
    owners = ((subjects.find(owner), name) for owner, name in hooks.written)
    written = frozenset(f"{owner.label}.{name}" for owner, name in owners if owner is not None)
    return Captured(flat, found.around, guards, acted_on, found.values, written)


class _Hooks:
    """The hooks of one trace; remembers why it was stopped, whatever Dynamo makes of that."""

    def __init__(self, subjects: Subjects, function: FunctionType, terms: Terms) -> None:
        self.subjects, self.function, self.terms = subjects, function, terms
        if terms.scaler is not None and subjects.find(terms.scaler) is None:
            subjects.add(ScalerSubject(terms.scaler, "of the precision"))
        scaler = subjects.find(terms.scaler)
        self.stopped: TraceStop | None = None
        self.written: list[tuple[Any, str]] = []
        self.symbolic = self.static_sizes = False
        self.trace_hooks = TraceHooks(
            meet=self.meet,
            grow=self.grow,
            is_subject=lambda value: subjects.find(value) is not None,
            write=self.write,
            backward=stand_ins.backward_stand_in(
                windowed=terms.windowed,
                casting=terms.autocast is not None,
                scaler=None if scaler is None else scaler.number,
            ),
            set_grad=OPS.set_grad.default,
            toggle=OPS.toggle.default,
            refuse=self.refuse,
            functions=_FUNCTIONS,
            quiet=zero_step_codes(),
        )

    def withheld(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which torch's functions do not clip, where that is not the time."""
        if self.terms.scaler is not None:
            return clipping_with(stand_ins.refuse_clipping)
        if self.terms.split.splits:
            return clipping_by(norm=current.clip_to_norm_in_time, value=current.clip_value_in_time)
        return contextlib.nullcontext() if self.terms.updates else without_clipping()

    def begin(self, part: Part) -> None:
        """A part of the call begins, while the trace goes on."""
        torch.clear_autocast_cache()  # Dynamo takes a cast for something a backward consumes
        terms = current.PLACE.terms = self.terms.of(part)
        for subject in self.subjects.all:
            if isinstance(subject, OptimizerSubject):
                subject.order.enter(terms)

    def meet(self, value: Any) -> None:
        if isinstance(value, stand_ins.Opaque):
            self.stop(Refusal(value.reason, hint=value.hint))
        if reason := object_reason(value):
            self.refuse(reason)
        kind = subject_class(value)
        if kind is not None and self.subjects.find(value) is None:
            self.subjects.add(kind(value))
            self.stop(_Met())

    def grow(self, source: Any, value: Any, resolve: Callable[[Any], Any]) -> None:
        """A list that existed before the step is about to change."""
        if is_growing(value) and self.subjects.find(value) is None:
            name, holder = holder_of(source, resolve, self.function)
            if holder is not None:
                self.subjects.add(ListSubject(value, name, holder))
                self.stop(_Met())

    def write(self, owner: Any, name: str) -> None:
        """An attribute is stored to; Dynamo does that when all effects have run."""
        if not all(subject.may_write(owner, name) for subject in self.subjects.all):
            self.refuse("writes an attribute that an optimizer or schedule may read in the step")
        self.written.append((owner, name))

    def refuse(self, reason: str, node: Node | None = None) -> None:
        """Refuse the step, because of what a node of Dynamo's graph computes if it is known."""
        self.stop(Refusal(reason, None if node is None else user_line(node), _TRY.get(reason)))

    def stop(self, error: TraceStop) -> None:
        self.stopped = error
        raise error

    def raise_stopped(self) -> None:
        if self.stopped is not None:
            raise self.stopped


def _check_trace(found: Traced) -> None:
    """Refuse graphs that would not mean what the step means."""
    graph_module = found.graph_module
    reason = tensor_reason(found.values)
    if reason is not None:
        refuse(reason)
    for node in graph_module.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(getattr(graph_module, target, None), Tensor):
            refuse("the graph holds a tensor that is no input of the step")
        if "register_hook" in target or "register_post_accumulate" in target:
            refuse("registers hooks inside the step")
        if target == "__delattr__":
            refuse("deletes an attribute of a tensor")
        if "manual_seed" in target or "set_rng_state" in target:
            refuse("host randomness: seeds inside the step")
    replaced = any(node.target is OPS.set_grad.default for node in graph_module.graph.nodes)
    if replaced and found.around.loads_after_call() & {"grad", "_grad"}:
        refuse("keeps a gradient that the step replaces")


_OWN = f"G['__import_{stand_ins.__name__.replace('.', '_dot_')}']"
_OWN_STATE = f"{_OWN}.TABLE"
"""Dynamo's names of the module that is traced in the place of torch's code, and of its state."""

_FIXED = re.compile(rf"{re.escape(_OWN_STATE)}(\.subject_\d+(\.\w+(\[\d+\])?)?)?")
"""Names in that state that nobody but us assigns, and we only once."""


def _guard_filter(subjects: Subjects) -> Callable[[Sequence[tuple[str, str, Any]]], list[bool]]:
    """Return a filter that drops guards on what stands in for something, and on our own code."""
    replaced = subjects.replaced

    def keep(entries: Sequence[tuple[str, str, Any]]) -> list[bool]:
        prefixes = {
            f"{name}.{attribute}"
            for name, _, value in entries
            for attribute in replaced.get(id(value), ())
        }
        prefixes |= {
            name
            for name, _, value in entries
            if isinstance(value, stand_ins.Recorder) or any(value is f for f in _REPLACED_FUNCTIONS)
        }
        return [
            not any(name == p or name.startswith((p + ".", p + "[")) for p in prefixes)
            and not (kind == "NOT_PRESENT_IN_GENERIC_DICT" and id(value) in replaced)
            and (not name.startswith(_OWN) or name.startswith(_OWN_STATE))
            and (isinstance(value, Tensor) or not _FIXED.fullmatch(name))
            and kind != "AUTOGRAD_SAVED_TENSORS_HOOKS"  # never when a step is replayed
            for name, kind, value in entries
        ]

    return keep


def _label(flat: GraphModule, found: Traced, subjects: Subjects, names: dict[str, Any]) -> None:
    """Say in the metadata of the flat graph what its inputs and subjects are called."""
    placeholders = [node for node in flat.graph.nodes if node.op == "placeholder"]
    known = slots(found.sources, found.values, names)
    for node, slot in zip(placeholders, known, strict=True):
        node.meta["stepgraph.slot"] = slot
    name_subjects(subjects, names)
    for node in flat.graph.nodes:
        numbers = [node.args[i] for i in _subject_arguments(node.target)]
        if numbers:
            node.meta["stepgraph.label"] = subjects[numbers[0]].label
            owners = [getattr(subjects[n].value, "optimizer", None) for n in numbers]
            node.meta["stepgraph.hyper"] = [
                (subjects.find(owner) or subjects[n]).label
                for owner, n in zip(owners, numbers, strict=True)
            ]


def _subject_arguments(target: Any) -> tuple[int, ...]:
    """Return which arguments of a marker are numbers of subjects."""
    if target not in MARKERS:
        return ()
    arguments = target._schema.arguments
    return tuple(i for i, a in enumerate(arguments) if a.name in ("subject", "optimizer"))


@contextlib.contextmanager
def _nothing_changes(function: FunctionType) -> Iterator[None]:
    """Restore random state and, when a capture fails, the names Dynamo put into globals.

    When it succeeds, only what our own functions have answered is cleared away: constants by now,
    that Dynamo has put there by the names of the functions, `_updates` as `sub_updates`.
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
