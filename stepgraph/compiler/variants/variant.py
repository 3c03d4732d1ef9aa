"""One captured path through a step: its graph, its guards, its program."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor

from stepgraph.capture import (
    CallOptions,
    Captured,
    ReplayPreconditions,
    TrackedObject,
    TrackedObjects,
)
from stepgraph.compiler.variants.cuda_recording import CudaGraphRecorder, Recording
from stepgraph.compiler.variants.rewrite import Rewritten
from stepgraph.ir import Kind, Role, StepGraph
from stepgraph.lowering import Section, emit, sections, with_marks
from stepgraph.runtime import Program, Spans, autocast_devices

TIMED = 8
"""Replays that are timed, for the explanation."""


class _Inputs(Exception):  # noqa: N818  (a signal, not an error)
    """Carries the inputs that the Python around a graph has collected for it."""


@dataclass
class Variant:
    """A program for one path through the user's Python.

    Attributes:
        rewritten: The step graphs, without the inputs of the traced call.
        call_options: The options of the calls it is for.
        program: The program to replay.
        call: The step as Python around the program: collects inputs, writes results back.
        preconditions: Checks the process state that forbids replays.
        capture_ms: Time it took to trace and lower.
        replay_ms: Shortest time among the first replays, or None.
        source: The program as Python.
        recording: Its CUDA graph, or why there is none; None without a GPU.
    """

    rewritten: Rewritten
    call_options: CallOptions
    program: Program
    call: Callable[..., Any]
    preconditions: ReplayPreconditions
    capture_ms: float
    source: str
    recording: Recording | None = None
    replay_ms: float | None = None

    @property
    def captured(self) -> Captured:
        """The result of the trace."""
        return self.rewritten.captured

    @property
    def captured_graph(self) -> StepGraph:
        """The step graph before the passes."""
        return self.rewritten.before

    @property
    def graph(self) -> StepGraph:
        """The step graph after the passes."""
        return self.rewritten.graph

    @property
    def subjects(self) -> dict[int, TrackedObject]:
        """The tracked objects it acts on, by number."""
        return self.captured.subjects

    def __post_init__(self) -> None:
        self.dropped = self.rewritten.dropped
        self._holds = self.captured.guards.check
        self._may_replay = self.preconditions.may_replay
        self._unchanged = [
            subject.unchanged
            for subject in self.subjects.values()
            if type(subject).unchanged is not TrackedObject.unchanged
        ]

    def matches(self, scope: dict[str, Any]) -> bool:
        """Return whether the guards pass and the tracked objects are unchanged, for a call."""
        if not self._holds(scope) or not self._may_replay():
            return False
        for unchanged in self._unchanged:  # noqa: SIM110  (a generator would be one more frame)
            if not unchanged():
                return False
        return True

    def timed(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the step and record the time."""
        start = time.perf_counter()
        result = self.call(*args, **kwargs)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        self.replay_ms = min(elapsed_ms, self.replay_ms or elapsed_ms)
        return result

    def inputs(
        self, function: FunctionType, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Return the inputs that the program would receive; nothing runs."""

        def collect(*inputs: Any) -> Any:
            raise _Inputs(inputs)

        around = self.captured.around
        try:
            around.function(collect, function.__closure__)(*args, **kwargs)
        except _Inputs as collected:
            return tuple(collected.args[0])
        finally:
            self.rebind(function)
        raise AssertionError("the Python around a graph always calls it")

    def rebind(self, function: FunctionType) -> None:
        """Use the closure variables of `function`, which has the traced code."""
        self.call = self.captured.around.function(self.program, function.__closure__)

    def with_marks(self, mark: Callable[[int], None], cut: Sequence[Section]) -> Program:
        """Return a program that calls `mark(i)` before section i, and once at the end."""
        own = self.program
        function = _marked(self.rewritten, cut, mark)
        return Program(function, autocast_devices=own.autocast_devices, leaves=own.leaves)

    @contextlib.contextmanager
    def running(self, program: Program, function: FunctionType) -> Iterator[None]:
        """Scope in which a replay runs another program."""
        self.call = self.captured.around.function(program, function.__closure__)
        try:
            yield
        finally:
            self.rebind(function)

    def count(self) -> dict[str, int]:
        """Return the number of nodes of each kind."""
        counted = self.graph.count()
        return {kind.value: counted[kind] for kind in Kind if counted.get(kind)}


def build(
    rewritten: Rewritten,
    function: FunctionType,
    call_options: CallOptions,
    started: float,
    recorder: CudaGraphRecorder,
) -> Variant:
    """Lower a captured step.

    Args:
        rewritten: The step after the passes.
        function: The user's step; the program shares its closure.
        call_options: The options of the calls it is for.
        started: `time.perf_counter()` when the capture began.
        recorder: Records CUDA graphs of compiled programs.
    """
    captured = rewritten.captured
    lowered = rewritten.lowered
    emitted = emit(lowered.flat, captured.subjects, updates=lowered.fused)
    inputs = list(zip(captured.inputs, rewritten.slots, strict=True))
    reached = [i for i, (value, _) in enumerate(inputs) if _is_leaf(value)]
    batch = tuple(i for i in reached if inputs[i][1].role is Role.BATCH)
    without_inputs = dataclasses.replace(captured, inputs=())
    kept = dataclasses.replace(rewritten, captured=without_inputs)
    run, recording = emitted.function, None
    if rewritten.backend == "inductor":
        recording = recorder.record(lowered, captured.subjects, captured.inputs, run)
        run = run if recording is None else recording.graphed or run
    program = Program(
        run,
        autocast_devices=autocast_devices(),
        leaves=batch,
        spans=_spans(function.__qualname__, kept),
    )
    leaves = {id(inputs[i][0]): inputs[i][0] for i in reached if i not in batch}
    return Variant(
        rewritten=kept,
        call_options=call_options,
        program=program,
        call=captured.around.function(program, function.__closure__),
        preconditions=ReplayPreconditions(leaves.values()),
        capture_ms=(time.perf_counter() - started) * 1e3,
        source=emitted.source,
        recording=recording,
    )


def release(subjects: TrackedObjects, variants: list[Variant]) -> None:
    """Remove the names that a compiled step has put into module globals."""
    for subject in subjects.all:
        subject.forget()
    for variant in variants:
        variant.captured.around.release()


def _spans(name: str, rewritten: Rewritten) -> Spans:
    """Return the program with profiler spans."""

    def make(mark: Callable[[int], None]) -> tuple[list[str], Callable[..., Any]]:
        cut = sections(rewritten.lowered.flat)
        return [section.title for section in cut], _marked(rewritten, cut, mark)

    return Spans(f"{name} (stepgraph)", make)


def _marked(
    rewritten: Rewritten, cut: Sequence[Section], mark: Callable[[int], None]
) -> Callable[..., Any]:
    lowered = rewritten.lowered
    flat = with_marks(lowered.flat, mark, cut)
    return emit(flat, rewritten.captured.subjects, updates=lowered.fused).function


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.is_leaf
