"""One captured path through a step: its graph, its guards, its program."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from stepgraph.capture import Captured, ListSubject, Subject, has_hooks
from stepgraph.ir import Kind, Role, Slot, StepGraph, partition
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
        captured: What the trace gave, without the inputs of the traced call.
        graph: The step graph before passes.
        program: What replays it.
        call: The step as Python around the program: collects inputs, writes results back.
        leaves: Parameters whose hooks the trace would lose.
        capture_ms: Time it took to trace and lower.
        replay_ms: Time of the second replay, or None.
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
        if not self.captured.guards.check(scope) or has_hooks(self.leaves):
            return False
        return all(subject.unchanged() for subject in self.captured.subjects.values())

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Replay the step."""
        if self.program.calls != 1:
            return self.call(*args, **kwargs)
        start = time.perf_counter()
        result = self.call(*args, **kwargs)
        self.replay_ms = (time.perf_counter() - start) * 1e3
        return result

    def rebind(self, function: FunctionType) -> None:
        """Use the closure variables of `function`, which has the code that was traced."""
        self.call = self.captured.around.function(self.program, function.__closure__)

    def count(self) -> dict[str, int]:
        """Return the number of nodes of each kind."""
        counted = self.graph.count()
        return {kind.value: counted[kind] for kind in Kind if counted.get(kind)}


def build(captured: Captured, function: FunctionType, started: float) -> Variant:
    """Lower a captured step.

    Args:
        captured: What the trace gave.
        function: The user's step, whose closure the program shares.
        started: `time.perf_counter()` when the capture began.
    """
    graph = partition(captured.flat)
    emitted = emit(captured.flat, captured.subjects)
    inputs = list(zip(captured.inputs, _slots(captured.flat), strict=True))
    reached = [i for i, (value, _) in enumerate(inputs) if _is_leaf(value)]
    batch = tuple(i for i in reached if inputs[i][1].role is Role.BATCH)
    program = Program(emitted.function, autocast_devices=autocast_devices(), leaves=batch)
    leaves = {id(inputs[i][0]): inputs[i][0] for i in reached if i not in batch}
    return Variant(
        captured=dataclasses.replace(captured, inputs=()),
        graph=graph,
        program=program,
        call=captured.around.function(program, function.__closure__),
        leaves=tuple(leaves.values()),
        capture_ms=(time.perf_counter() - started) * 1e3,
        source=emitted.source,
    )


@dataclass(frozen=True)
class Rehearsed:
    """A rehearsal and the place to compare at: entry of a method, or the end of the call."""

    rehearsal: Rehearsal
    owner: Any = None
    method: str | None = None


def rehearse(captured: Captured) -> Rehearsed:
    """Run a captured step once without a trace: whole, or on copies up to its first update."""
    flat, subjects = captured.flat, captured.subjects
    inputs, names = captured.inputs, _names(flat)
    devices = autocast_devices()
    if all(subject.may_rehearse() for subject in subjects.values()):
        emitted = emit(flat, subjects, withhold=True)
        owners = {s.label: s.value for s in subjects.values() if not isinstance(s, ListSubject)}
        program = Program(emitted.function, autocast_devices=devices)
        return Rehearsed(WholeRehearsal(program, inputs, names, owners, captured.written))
    emitted = emit(flat, subjects, withhold=True, until_update=True)
    program = Program(emitted.function, autocast_devices=devices)
    rehearsal = PartialRehearsal(program, inputs, names)
    update: Any = first_update(flat.graph)
    if update is None:
        return Rehearsed(rehearsal)
    arguments = [argument.name for argument in update.target._schema.arguments]
    owner = subjects[update.args[arguments.index("subject")]].value
    marker = update.target._schema.name.partition("::")[2]
    return Rehearsed(rehearsal, owner, UPDATE_METHODS.get(marker))


def _slots(flat: GraphModule) -> list[Slot]:
    return [n.meta["stepgraph.slot"] for n in flat.graph.nodes if n.op == "placeholder"]


def _names(flat: GraphModule) -> list[str]:
    """Return a name for every input of a flat graph."""
    return [f"{s.name}.grad" if s.role is Role.GRAD else s.name for s in _slots(flat)]


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.is_leaf
