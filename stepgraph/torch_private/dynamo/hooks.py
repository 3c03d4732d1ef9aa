"""The functions and operators that the capture floor passes to a trace."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TraceStop(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by a hook of ours to end a trace; never leaves the capture floor."""


FRAMES = "stepgraph.frames"
"""Metadata of a node: code and line of the functions that made it when traced, the step first."""

LIVE_GRAPH = "returns or stores a tensor with a live graph"
"""The reason to refuse a step if eager would let the caller call backward on a result."""


class Inlined(NamedTuple):
    """A function of torch, and the function that a trace inlines instead.

    Attributes:
        function: The function.
        replacement: The function to trace instead.
        caller: The code from which it must be called; None for any.
    """

    function: Callable[..., Any]
    replacement: Callable[..., Any]
    caller: types.CodeType | None = None


@dataclass
class TraceHooks:
    """The functions and operators that a trace uses instead of Dynamo's own.

    Attributes:
        on_object: Called with every user object that the trace wraps; may raise `TraceStop`.
        backward: Python function that Dynamo inlines for `loss.backward(...)`; called with
            `(loss, leaves, gradient, retain_graph, allow_unused)`.
        set_grad: Operator left in the graph wherever Python stores to `.grad` of an input.
        toggle: Operator left in the graph wherever Python changes `requires_grad`.
        functions: Functions of torch that a trace replaces: `(module, name, replacement)`.
        inlined: Functions for which a trace inlines others.
        quiet: Code objects whose own stores to `.grad` leave no `set_grad`.
        toggled: Fake tensors whose flag the trace has changed, once for every change.
        refuse: Called with a reason to refuse the step, and optionally with the node of Dynamo's
            graph that caused it; raises `TraceStop`.
        on_list_change: Called before a list changes, with Dynamo's description of its location,
            the list, and a function that resolves such a description.
        is_tracked: Returns whether an object is tracked already.
        on_store: Called with a user object and the name of an attribute that is stored to.
    """

    on_object: Callable[[Any], None]
    backward: Callable[..., None]
    set_grad: Any
    toggle: Any
    refuse: Callable[..., None]
    on_list_change: Callable[[Any, Any, Callable[[Any], Any]], None]
    is_tracked: Callable[[Any], bool]
    on_store: Callable[[Any, str], None]
    functions: Sequence[tuple[Any, str, Any]] = ()
    inlined: Sequence[Inlined] = ()
    quiet: set[types.CodeType] = field(default_factory=set)
    toggled: list[Any] = field(default_factory=list)
