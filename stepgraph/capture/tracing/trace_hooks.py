"""The hooks of one trace: objects it finds, attributes it writes, the reason why it stops."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.fx import Node

from stepgraph.capture.checks.preconditions import object_reason
from stepgraph.capture.objects import (
    FORBIDDEN_LOOP,
    TrackedList,
    TrackedObjects,
    TrackedScaler,
    is_growing,
    tracked_class,
)
from stepgraph.capture.objects.list_location import holder_of
from stepgraph.capture.objects.optimizer import ZERO_GRAD_CODE
from stepgraph.capture.options.call_options import CallOptions
from stepgraph.capture.options.current import CURRENT, clipping_stand_ins
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.capture.options.microbatches import Part
from stepgraph.capture.refusal import Refusal
from stepgraph.capture.tracing.backward import backward_stand_in
from stepgraph.capture.tracing.flatten import user_line
from stepgraph.capture.tracing.functions import REPLACED_FUNCTIONS
from stepgraph.effects import SET_GRAD, TOGGLE
from stepgraph.torch_private import LIVE_GRAPH, TraceHooks, TraceStop

_HINTS = {LIVE_GRAPH: "`.detach()` it, or let a backward in the step consume its graph"}


class NewObject(TraceStop):
    """A trace found an object to track; it starts again."""


class StepTraceHooks:
    """The hooks of one trace; keeps the error that stopped it, which Dynamo may replace.

    Args:
        objects: The tracked objects of the step. Extended.
        function: The user's step.
        options: The options of the call.

    Attributes:
        written: Attributes that traced Python stores to, with their owners.
        symbolic: Whether the latest trace had symbolic sizes.
        static_sizes: Whether later traces treat sizes as constants.
        trace_hooks: The functions that Dynamo calls.
    """

    def __init__(
        self, objects: TrackedObjects, function: FunctionType, options: CallOptions
    ) -> None:
        self.objects, self.function, self.options = objects, function, options
        if options.scaler is not None and objects.find(options.scaler) is None:
            objects.add(TrackedScaler(options.scaler, "of the precision"))
        scaler = objects.find(options.scaler)
        self.stopped: TraceStop | None = None
        self.written: list[tuple[Any, str]] = []
        self.symbolic = self.static_sizes = False
        self.trace_hooks = TraceHooks(
            on_object=self.on_object,
            on_list_change=self.on_list_change,
            is_tracked=lambda value: objects.find(value) is not None,
            on_store=self.on_store,
            backward=backward_stand_in(options, None if scaler is None else scaler.number),
            set_grad=SET_GRAD.op,
            toggle=TOGGLE.op,
            refuse=self.refuse,
            functions=REPLACED_FUNCTIONS,
            inlined=clipping_stand_ins(options),
            quiet={ZERO_GRAD_CODE},
        )

    def restart(self) -> None:
        """Begin a trace."""
        self.stopped, self.written = None, []
        CURRENT.options = self.options

    def begin(self, part: Part) -> None:
        """Begin a part of the call, while the trace goes on."""
        torch.clear_autocast_cache()  # else a later backward would reuse a consumed cast
        options = CURRENT.options = self.options.of(part)
        for optimizer in self.objects.optimizers:
            optimizer.order.enter(options)

    def on_object(self, value: Any) -> None:
        """Track an object that the trace has found, or refuse the step because of it."""
        if isinstance(value, Forbidden):
            has_own_loop = value is FORBIDDEN_LOOP
            self.stop(Refusal(value.reason, hint=value.hint, has_own_loop=has_own_loop))
        if reason := object_reason(value):
            self.refuse(reason)
        kind = tracked_class(value)
        if kind is not None and self.objects.find(value) is None:
            self.objects.add(kind(value))
            self.stop(NewObject())

    def on_list_change(self, source: Any, value: Any, resolve: Callable[[Any], Any]) -> None:
        """Track a list that existed before the step and is about to change."""
        if is_growing(value) and self.objects.find(value) is None:
            name, holder = holder_of(source, resolve, self.function)
            if holder is not None:
                self.objects.add(TrackedList(value, name, holder))
                self.stop(NewObject())

    def on_store(self, owner: Any, name: str) -> None:
        """Record a store to an attribute; Dynamo performs it after all effects have run."""
        if not all(tracked.may_write(owner, name) for tracked in self.objects.all):
            self.refuse("writes an attribute that an optimizer or schedule may read in the step")
        self.written.append((owner, name))

    def refuse(self, reason: str, node: Node | None = None) -> None:
        """Refuse the step; `node`, if known, gives the user's line."""
        self.stop(Refusal(reason, None if node is None else user_line(node), _HINTS.get(reason)))

    def stop(self, error: TraceStop) -> None:
        """End the trace."""
        self.stopped = error
        raise error

    def raise_stopped(self) -> None:
        """Raise what ended the trace, if anything did."""
        if self.stopped is not None:
            raise self.stopped
