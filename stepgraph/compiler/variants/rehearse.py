"""Rehearsal: run a new program, then the user's Python, and compare the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph

from stepgraph.capture import (
    CallOptions,
    Refusal,
    TrackedList,
    TrackedObject,
    TrackedObjects,
    with_call_options,
)
from stepgraph.compiler.variants.rewrite import Rewritten
from stepgraph.effects import RestoreObject
from stepgraph.ir import node_effect
from stepgraph.lowering import emit, first_update
from stepgraph.runtime import (
    PartialRehearsal,
    Program,
    Rehearsal,
    WholeRehearsal,
    at_entry_of,
    autocast_devices,
    results_of,
)


class RehearsedCall:
    """Runs a program once and undoes its writes, then runs the user's Python, and compares.

    Args:
        rewritten: The step, with the inputs of the call. Everything the program writes is restored
            before the user's Python runs.
        call_options: The options of the call.
        subjects: All tracked objects of the step.

    Attributes:
        difference: The first value that differs, or None. Set by the call.
        refusal: Why the program must not be used although nothing differs, or None.
    """

    def __init__(
        self, rewritten: Rewritten, call_options: CallOptions, subjects: TrackedObjects
    ) -> None:
        self._rewritten, self._call_options, self._subjects = rewritten, call_options, subjects
        self._retried = rewritten.lowered.try_again()
        self._rehearsed = _rehearse(rewritten)
        self.difference: str | None = None
        self.refusal: Refusal | None = None

    def __call__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run `function` once and return its result."""
        rehearsed, rehearsal = self._rehearsed, self._rehearsed.rehearsal
        optimizers = self._rewritten.captured.optimizers
        own = [s.value for s in optimizers if not s.steps_as_torch()]
        with (
            results_of(own) as returned,
            at_entry_of(rehearsed.owner, rehearsed.method, rehearsal.compare),
            with_call_options(self._call_options, self._subjects),
        ):
            result = function(*args, **kwargs)
        if rehearsed.owner is None:
            rehearsal.compare()
        rehearsal.compare_result(result)
        worse = (f"{r.name}: {r.refusal}" for r in self._retried if r.refusal is not None)
        self.difference = rehearsal.difference or next(worse, None)
        if returned:
            self.refusal = Refusal("an optimizer whose step() returns a value")
        return result


@dataclass(frozen=True)
class _Rehearsed:
    """A rehearsal and the point of comparison: entry of a method, or the end of the call."""

    rehearsal: Rehearsal
    owner: Any = None
    method: str | None = None


def _rehearse(rewritten: Rewritten) -> _Rehearsed:
    """Run a program and undo its writes: all of it, or on copies up to its first update."""
    captured, flat = rewritten.captured, rewritten.lowered.flat
    subjects, inputs, names = captured.subjects, captured.inputs, rewritten.input_names
    devices = autocast_devices()
    besides = captured.written | {f"{name}.grad" for name in rewritten.dropped}
    if all(subject.may_rehearse() for subject in subjects.values()):
        emitted = emit(flat, subjects, withhold=True)
        owners = {s.label: s.value for s in subjects.values() if not isinstance(s, TrackedList)}
        program = Program(emitted.function, autocast_devices=devices)
        lists = [s.value for s in subjects.values() if isinstance(s, TrackedList)]
        return _Rehearsed(WholeRehearsal(program, inputs, names, owners, besides, lists))
    emitted = emit(flat, subjects, withhold=True, until_update=True)
    program = Program(emitted.function, autocast_devices=devices)
    rehearsal = PartialRehearsal(program, inputs, names, besides)
    owner, method = _entered(flat.graph, subjects)
    return _Rehearsed(rehearsal, owner, method)


def _entered(graph: Graph, objects: Mapping[int, TrackedObject]) -> tuple[Any, str | None]:
    """Return the object and its method whose call in the user's Python ends a rehearsal.

    To set a hyper-parameter calls no method: then the next method is used. Values that the eager
    call computes until then may differ from the rehearsal, which refuses the variant. (None, None)
    if no method is called: the rehearsal is then compared at the end of the call.
    """
    first = first_update(graph)
    nodes = list(graph.nodes)
    for node in nodes if first is None else nodes[nodes.index(first) :]:
        effect = node_effect(node)
        if effect is not None and isinstance(effect.rehearsal, RestoreObject):
            owner = objects[effect.argument(node, effect.object_arguments[0])].value
            if effect.rehearsal.method is not None:
                return owner, effect.rehearsal.method
    return None, None
