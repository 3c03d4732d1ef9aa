"""One captured path through a step: its graph, its guards, its program."""

from __future__ import annotations

import inspect
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from stepgraph.capture import Captured, ListSubject, OptimizerSubject, Subject, has_hooks
from stepgraph.ir import Kind, Role, StepGraph, partition
from stepgraph.lowering import emit, first_update
from stepgraph.runtime import (
    PartialRehearsal,
    Program,
    Rehearsal,
    WholeRehearsal,
    autocast_devices,
)

UPDATE_METHODS = {
    "step": "step",
    "lr_step": "step",
    "unscale": "unscale_",
    "scaled_step": "step",
    "scale_update": "update",
    "ema": "update_parameters",
}
"""The method of a subject that is entered where each marker stands."""


@dataclass
class Variant:
    """A program for one path through the user's Python.

    Attributes:
        captured: What the trace gave.
        graph: The step graph before passes.
        program: What replays it.
        call: The step as Python around the program: collects inputs, writes results back.
        leaves: Tensors whose hooks the trace would lose.
        capture_ms: Time it took to trace and lower.
        source: The program as Python.
    """

    captured: Captured
    graph: StepGraph
    program: Program
    call: Callable[..., Any]
    leaves: tuple[Tensor, ...]
    capture_ms: float
    source: str
    replay_ms: float | None = None

    @property
    def subjects(self) -> dict[int, Subject]:
        """The optimizers, schedulers and other objects it acts on."""
        return self.captured.subjects

    def matches(self, scope: dict[str, Any]) -> bool:
        """Return whether everything the trace took as a fact holds for a call."""
        return (
            self.captured.guards.check(scope)
            and all(subject.unchanged() for subject in self.captured.subjects.values())
            and not any(map(has_hooks, self.leaves))
        )

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Replay the step."""
        if self.program.calls != 1:
            return self.call(*args, **kwargs)
        start = time.perf_counter()
        result = self.call(*args, **kwargs)
        self.replay_ms = (time.perf_counter() - start) * 1e3
        return result

    def rebind(self, function: Any) -> None:
        """Use the closure variables of `function`, which has the code that was traced."""
        self.call = _around(self.captured, self.program, function)

    def count(self) -> dict[str, int]:
        """Return the number of nodes of each kind."""
        counted = self.graph.count()
        return {kind.value: counted[kind] for kind in Kind if counted.get(kind)}

    def optimizers(self) -> list[OptimizerSubject]:
        """Return the optimizers it steps or clears."""
        return [s for s in self.subjects.values() if isinstance(s, OptimizerSubject)]


def build(captured: Captured, function: Any, started: float) -> Variant:
    """Lower a captured step.

    Args:
        captured: What the trace gave.
        function: The user's step, whose closure the program shares.
        started: `time.perf_counter()` when the capture began.
    """
    graph = partition(captured.flat)
    emitted = emit(captured.flat, captured.subjects)
    program = Program(emitted.function, autocast_devices=autocast_devices())
    leaves = {
        id(value): value
        for value in captured.traced.values
        if isinstance(value, Tensor) and value.requires_grad and value.is_leaf
    }
    return Variant(
        captured=captured,
        graph=graph,
        program=program,
        call=_around(captured, program, function),
        leaves=tuple(leaves.values()),
        capture_ms=(time.perf_counter() - started) * 1e3,
        source=emitted.source,
    )


def _around(captured: Captured, program: Program, function: Any) -> Callable[..., Any]:
    """Return the step as Python around its program."""
    raw = getattr(function, "__func__", function)
    call = captured.traced.function(program, raw.__closure__)
    return types.MethodType(call, function.__self__) if inspect.ismethod(function) else call


@dataclass(frozen=True)
class Rehearsed:
    """A rehearsal and the place to compare at: entry of a method, or the end of the call."""

    rehearsal: Rehearsal
    owner: Any = None
    method: str | None = None


def rehearse(variant: Variant) -> Rehearsed:
    """Run a new variant once without a trace: whole, or on copies up to its first update."""
    flat, subjects = variant.captured.flat, variant.captured.subjects
    inputs, names = variant.captured.traced.values, _names(flat)
    devices = variant.program.autocast_devices
    if all(subject.may_rehearse() for subject in subjects.values()):
        emitted = emit(flat, subjects, withhold=True)
        owners = {s.label: s.value for s in subjects.values() if not isinstance(s, ListSubject)}
        program = Program(emitted.function, autocast_devices=devices)
        return Rehearsed(WholeRehearsal(program, inputs, names, owners))
    emitted = emit(flat, subjects, withhold=True, until_update=True)
    program = Program(emitted.function, autocast_devices=devices)
    rehearsal = PartialRehearsal(program, inputs, names)
    update = first_update(flat.graph)
    if update is None:
        return Rehearsed(rehearsal)
    arguments = [argument.name for argument in update.target._schema.arguments]
    owner = subjects[update.args[arguments.index("subject")]].value
    marker = update.target._schema.name.partition("::")[2]
    return Rehearsed(rehearsal, owner, UPDATE_METHODS.get(marker))


def _names(flat: GraphModule) -> list[str]:
    """Return a name for every input of a flat graph."""
    slots = [n.meta["stepgraph.slot"] for n in flat.graph.nodes if n.op == "placeholder"]
    return [f"{s.name}.grad" if s.role is Role.GRAD else s.name for s in slots]
