"""A probe: repeats one call of a compiled step, without training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, Protocol

from torch import Tensor
from torch.fx import GraphModule

from stepgraph.capture import CallOptions, TrackedList, TrackedObject
from stepgraph.compiler.explain import Explanation
from stepgraph.compiler.options import Options
from stepgraph.compiler.variants.variant import TIMED, Variant
from stepgraph.compiler.window import Window
from stepgraph.errors import ConfigurationError
from stepgraph.ir import flatten
from stepgraph.lowering import Section
from stepgraph.runtime import Snapshot, restored_rng

_WARM_UP = 3
"""Calls, for every position in a window, after which a step that can be captured has replayed."""


class ProbedStep(Protocol):
    """The state of a `CompiledStep` that a probe reads and restores."""

    _variants: list[Variant]
    _window: Window
    _options: Options
    _plain: FunctionType
    _function: FunctionType
    _owner: Callable[[], Any] | None
    _scope: Callable[..., dict[str, Any] | None]
    _calls: int
    _replays: int
    _dropped: frozenset[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call."""

    def explain(self) -> Explanation:
        """Describe the step."""

    def _bound(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments, preceded by the owner of a method."""

    def _eagerly(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call_options: CallOptions
    ) -> Any:
        """Run the user's Python."""


class Probe:
    """One call of a compiled step, to be measured.

    Args:
        step: The compiled step. If no variant fits the arguments, it is called, and trains.
        args: Arguments of the call.
        kwargs: More arguments of the call.

    Attributes:
        warm_up_calls: Number of calls, which trained, until the step replayed.

    Raises:
        ConfigurationError: The step runs eagerly for these arguments.
    """

    def __init__(self, step: ProbedStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._step, self._args, self._kwargs = step, args, kwargs
        self.warm_up_calls = 0
        self._variant = self._warmed_up()
        self._call_options = self._variant.call_options
        self._before = _SavedState(step, self._variant, step._bound(args), kwargs)

    @property
    def name(self) -> str:
        """The step's name."""
        return self._step._function.__qualname__

    @property
    def variant(self) -> int:
        """The index of the variant among those of the step, in the order they were made."""
        return self._step._variants.index(self._variant)

    @property
    def flat(self) -> GraphModule:
        """The flat graph of the step after the passes: operators and effects only."""
        return self._variant.rewritten.flat

    @property
    def flat_as_captured(self) -> GraphModule:
        """The flat graph of the step before the passes."""
        return flatten(self._variant.captured_graph)

    @property
    def lowered(self) -> GraphModule:
        """The flat graph that is replayed; runs of operators may be compiled regions."""
        return self._variant.rewritten.lowered.flat

    @property
    def subjects(self) -> Mapping[int, TrackedObject]:
        """The tracked objects that the markers in the graph act on, by number."""
        return self._variant.subjects

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The inputs of the program in this call."""
        return self._before.inputs

    @property
    def place(self) -> str | None:
        """The position of the call in its window; None if there is no window."""
        window = self._step._window
        return f"{window.index + 1} of {window.length}" if window.length > 1 else None

    def eager(self) -> None:
        """Run the user's Python, with the options of the call."""
        step = self._step
        with self._call_options.casting():
            step._eagerly(step._bound(self._args), self._kwargs, self._call_options)

    def replay(self) -> None:
        """Make the call.

        Raises:
            ConfigurationError: The call was not a replay.
        """
        replays = self._step._replays
        self._step(*self._args, **self._kwargs)
        if self._step._replays == replays:
            raise self._runs_eagerly()

    def marked(self, mark: Callable[[int], None], cut: Sequence[Section]) -> Callable[[], None]:
        """Return a `replay` that calls `mark(i)` before section i, and once at the end.

        Args:
            mark: The function to call.
            cut: Sections of `lowered`.
        """
        program = self._variant.with_marks(mark, cut)

        def replay() -> None:
            with self._variant.running(program, self._step._function):
                self.replay()

        return replay

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Scope that restores everything the step writes to its state when the probe was made."""
        with restored_rng():
            self._before.skip_first_replays()
            try:
                yield
            finally:
                self._before.restore()

    def _warmed_up(self) -> Variant:
        step = self._step
        for _ in range(_WARM_UP * step._window.length + 1):
            variant = self._matching()
            if variant is not None:
                return variant
            step(*self._args, **self._kwargs)
            self.warm_up_calls += 1
        raise self._runs_eagerly()

    def _matching(self) -> Variant | None:
        """Return the variant that a call would replay."""
        step = self._step
        scope = step._scope(step._bound(self._args), self._kwargs)
        call_options = step._window.call_options
        if scope is None:
            return None
        with call_options.casting():
            fitting = (
                v for v in step._variants if v.call_options is call_options and v.matches(scope)
            )
            return next(fitting, None)

    def _runs_eagerly(self) -> ConfigurationError:
        explanation = self._step.explain()
        reason = explanation.fallback_reason
        if explanation.closures:
            reason = "an optimizer has its own loop; only its closure is captured"
        return ConfigurationError(
            f"{self.name} has nothing to profile",
            found=reason or "no variant for these arguments",
            why="a profile compares a captured step with the same step in eager mode",
            hint="explain() lists what to change",
        )


class _SavedState:
    """The present values of everything that a step may write."""

    def __init__(
        self, step: ProbedStep, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.inputs = variant.inputs(step._function, args, kwargs)
        names = variant.rewritten.input_names
        named = zip(names, self.inputs, strict=True)
        subjects = variant.subjects.values()
        self._lists = [(s.value, list(s.value)) for s in subjects if isinstance(s, TrackedList)]
        self._snapshot = Snapshot(
            {name: value for name, value in named if isinstance(value, Tensor)},
            {s.label: s.value for s in subjects if not isinstance(s, TrackedList)},
        )
        self._step, self._variant = step, variant
        self._counts = step._calls, step._replays, step._dropped
        self._replayed = variant.program.calls
        self._place = step._window.index, step._window.latest

    def restore(self) -> None:
        """Restore these values."""
        self._snapshot.restore()
        for values, items in self._lists:
            values.clear()
            values.extend(items)
        step = self._step
        step._calls, step._replays, step._dropped = self._counts
        step._window.restart(self._place[0])
        step._window.latest = self._place[1]
        self._variant.program.calls = self._replayed

    def skip_first_replays(self) -> None:
        """Skip verification and timing of the first replays, until `restore`."""
        least = max(self._step._options.verify, TIMED)
        self._variant.program.calls = max(self._replayed, least)
