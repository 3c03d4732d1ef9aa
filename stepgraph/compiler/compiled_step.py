"""`CompiledStep`: the result of `stepgraph.compile`."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch.compiler import is_compiling, is_dynamo_compiling

from stepgraph import config
from stepgraph.capture import (
    CallOptions,
    Refusal,
    check_batch,
    entry_reason,
    looped,
    scope_reader,
    with_call_options,
)
from stepgraph.compiler import extensions
from stepgraph.compiler.closures import ClosureSteps
from stepgraph.compiler.explain import Explanation, explain
from stepgraph.compiler.fallbacks import Fallbacks, options_not_applicable
from stepgraph.compiler.flush import flush, flush_not_possible
from stepgraph.compiler.options import Options
from stepgraph.compiler.probe import Probe
from stepgraph.compiler.variants.capture_session import CaptureSession
from stepgraph.compiler.variants.cuda_recording import CudaGraphRecorder
from stepgraph.compiler.variants.rewrite import check_dropped
from stepgraph.compiler.variants.variant import TIMED, Variant, build, release
from stepgraph.compiler.variants.verify import check_same, rehearsal_of
from stepgraph.compiler.window import Window
from stepgraph.errors import ConfigurationError
from stepgraph.ir import StepGraph
from stepgraph.runtime import NeedsEager

Owner = Callable[[], Any]
"""Returns the object a step is bound to; a weak reference, or a constant function."""


class CompiledStep:
    """A training step that is captured on its second call and replayed from then on.

    Behaves like the function it wraps. In a class body it is a descriptor: every instance has its
    own compiled step, with its own variants.

    Args:
        function: The user's step, unbound. Not changed.
        options: The options of `stepgraph.compile`.
        owner: For a method, returns the object it is bound to.
    """

    def __init__(
        self, function: FunctionType, options: Options, owner: Owner | None = None
    ) -> None:
        functools.update_wrapper(self, function)
        self._options = options
        self._call_options = options.call_options()
        self._is_plain = self._call_options.is_default
        self._owner = owner
        self._set_function(function)
        self._instances: dict[int, tuple[weakref.ref[Any], CompiledStep]] = {}
        self._drop_variants()

    def _set_function(self, function: FunctionType) -> None:
        """Use `function` as the step: as it is, or looped over the parts of a split batch."""
        self._plain = function
        self._split = self._options.split.of(function, bound=self._owner is not None)
        self._function = looped(function, self._split) if self._split.splits else function

    def _drop_variants(self) -> None:
        self._variants: list[Variant] = []
        self._capturing = CaptureSession(self._options)
        self._recorder = CudaGraphRecorder()
        self._fallbacks = Fallbacks(self._function.__qualname__, self._options.on_fallback)
        self._closures = ClosureSteps(lambda closure: CompiledStep(closure, self._options))
        self._loops: list[Any] = []
        self._window = Window(self._call_options)
        self._scope = scope_reader(self._function)
        self._calls = self._replays = 0
        self._dropped: frozenset[str] = frozenset()  # gradients that the latest call did not keep
        self._observed: list[Any] = []  # guards of paths whose tracked objects are known
        self._first_call_ms: float | None = None
        self._release = weakref.finalize(self, release, self._capturing.subjects, self._variants)

    def __get__(self, instance: Any, owner: type | None = None) -> CompiledStep:
        if instance is None:
            return self
        known = self._instances.get(id(instance))
        if known is not None and known[0]() is instance:
            return known[1]
        forget = functools.partial(self._instances.pop, id(instance), None)
        reference = weakref.ref(instance, lambda _: forget())
        step = CompiledStep(self._plain, self._options, reference)
        self._instances[id(instance)] = (reference, step)
        return step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the step, or run it eagerly and perhaps capture it."""
        if is_dynamo_compiling():
            return self._plain(*self._bound(args), **kwargs)  # part of a larger trace
        call_options = self._window.call_options
        if not self._is_plain:
            return self._call_with_options(args, kwargs, call_options)
        bound = args if self._owner is None else self._bound(args)
        return self._call(bound, kwargs, call_options)

    def _call_with_options(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call_options: CallOptions
    ) -> Any:
        """Call the step with options that are not the default; count the call in its window."""
        args, kwargs = call_options.cast(args, kwargs)
        if call_options.autocast is None:
            result = self._call(self._bound(args), kwargs, call_options)
        else:
            with call_options.casting():
                result = self._call(self._bound(args), kwargs, call_options)
        if call_options.scaler is not None and call_options.updates:
            call_options.scaler.update()
        if call_options.windowed:
            self._window.advance(args, kwargs)
        return result

    def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call_options: CallOptions
    ) -> Any:
        scope = self._scope(args, kwargs) if self._variants else None
        if scope is None:
            return self._call_unmatched(args, kwargs, call_options)
        for variant in self._variants:
            if variant.call_options is call_options and variant.matches(scope):
                if self._dropped:
                    check_dropped(self._dropped, variant.rewritten, self._function.__qualname__)
                calls = variant.program.calls
                if calls < self._options.verify:
                    return self._verify(variant, args, kwargs)
                run = variant.call if calls >= TIMED else variant.timed
                try:
                    result = run(*args, **kwargs)
                except NeedsEager as reason:
                    return self._call_unmatched(args, kwargs, call_options, str(reason))
                self._calls += 1
                self._replays += 1
                self._dropped = variant.dropped
                return result
        return self._call_unmatched(args, kwargs, call_options)

    def _bound(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._owner is None:
            return args
        owner = self._owner()
        if owner is None:
            raise ConfigurationError(
                f"{self._function.__qualname__} belongs to an object that no longer exists",
                why="a compiled step does not keep the object alive whose method it is",
                hint="keep a reference to it: model = Model(); model.training_step(...)",
            )
        return (owner, *args)

    @property
    def owner(self) -> Any:
        """The object whose method the step is; None for a function, or if it no longer exists."""
        return None if self._owner is None else self._owner()

    def eager(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's Python once, without any option and outside of any window."""
        return self._plain(*self._bound(args), **kwargs)

    def explain(self) -> Explanation:
        """Return a report of what was captured, with the reasons of eager calls."""
        return explain(
            name=self._function.__qualname__,
            variants=self._variants,
            captures=self._capturing.done,
            replays=self._replays,
            calls=self._calls,
            fallbacks=self._fallbacks,
            first_call_ms=self._first_call_ms,
            closures=[closure.explain() for closure in self._closures.all],
            options=self._options.given(),
        )

    def profile(self, *args: Any, steps: int = 20, **kwargs: Any) -> Any:
        """Measure the step for these arguments: eager, compiled, and each node.

        State that the step writes is restored, random state included: nothing is trained. Other
        actions of the user's Python - prints, writes to attributes - happen in each eager call. A
        step that is not captured for these arguments yet is called as usual until it is, up to
        three times; these calls train.

        Args:
            *args: Arguments of the step.
            steps: Measured calls of each kind.
            **kwargs: More arguments of the step.

        Returns:
            A `stepgraph.profiling.Profile`.

        Raises:
            ConfigurationError: The step runs eagerly for these arguments, or `steps` is not a
                positive integer.
        """
        return extensions.profile(Probe(self, *self._call_options.cast(args, kwargs)), steps)

    @property
    def captured_graphs(self) -> tuple[StepGraph, ...]:
        """The step graphs as captured, before any pass, one for each variant."""
        return tuple(variant.captured_graph for variant in self._variants)

    @property
    def graphs(self) -> tuple[StepGraph, ...]:
        """The step graphs as replayed, after the passes, one for each variant, at ATen level."""
        return tuple(variant.graph for variant in self._variants)

    def flush(self) -> bool:
        """Update from a window that is not complete.

        The gradients are multiplied by n/m for a window of m calls instead of n; then the actions
        of the last call of a window run: clipping, updates, schedules, averages.

        Returns:
            Whether a window was open.

        Raises:
            ConfigurationError: The update uses a value that only a whole call computes.
        """
        if self._window.index == 0:
            return False
        call_options, (args, kwargs) = self._window.last_call_options, self._window.latest
        with call_options.casting():
            try:
                captured = self._capturing.capture(
                    self._function, self._bound(args), kwargs, call_options
                )
            except Refusal as refusal:
                raise flush_not_possible(self._function.__qualname__, refusal) from refusal
            flush(captured, factor=call_options.micro_batches / self._window.index)
        if call_options.scaler is not None:
            call_options.scaler.update()
        self._window.restart(0)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the window and the loss scale; `.grad` has pending gradients."""
        return self._window.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position and a loss scale returned by `state_dict`.

        Raises:
            CheckpointError: The state belongs to a window of another length.
        """
        self._window.load_state_dict(state)

    def reset(self) -> None:
        """Drop all variants and observations; the next call is eager again.

        Raises:
            ConfigurationError: A window is open.
        """
        if self._window.index:
            raise ConfigurationError(
                f"{self._function.__qualname__} cannot be reset now",
                found=f"gradients of {self._window.index} calls that are not used yet",
                hint="flush() first",
            )
        self._release()
        self._drop_variants()

    def rebind(self, function: FunctionType) -> None:
        """Use another function with the same code and other closure variables."""
        self._set_function(function)
        self._scope = scope_reader(self._function)
        for variant in self._variants:
            variant.rebind(self._function)

    def _call_unmatched(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call_options: CallOptions,
        refused: str | None = None,
    ) -> Any:
        """Capture a new variant, or record why not; in both cases this call runs eagerly."""
        if is_compiling():
            return self._function(*args, **kwargs)  # part of a larger trace, without Dynamo
        if call_options.split.splits:
            check_batch(self._plain, args, kwargs, self._split)
        self._calls += 1
        if config.current().disable:
            self._fallbacks.count(Refusal("STEPGRAPH_DISABLE is set"))
            return self._eagerly(args, kwargs, call_options)
        if reason := refused or entry_reason():
            return self._fall_back(Refusal(reason), args, kwargs, call_options)
        scope = self._scope(args, kwargs)
        self._capturing.record_varying_numbers(self._function, args, kwargs, self._variants, scope)
        if self._first_call_ms is None:
            return self._first_call(args, kwargs, call_options)
        if self._loops:
            return self._call_with_closures(args, kwargs)
        return self._capture_and_call(args, kwargs, call_options)

    def _first_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call_options: CallOptions
    ) -> Any:
        """Run eagerly, so that optimizers and scalers create their state."""
        start = time.perf_counter()
        result = self._eagerly(args, kwargs, call_options)
        self._first_call_ms = (time.perf_counter() - start) * 1e3
        return result

    def _capture_and_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call_options: CallOptions
    ) -> Any:
        started, capturing = time.perf_counter(), self._capturing
        try:
            capturing.admit(self._function, self._fallbacks.latest, len(self._variants))
            captured = capturing.capture(self._function, args, kwargs, call_options)
            rewritten = capturing.rewrite(captured)
            check_dropped(self._dropped, rewritten, self._function.__qualname__)
            call = capturing.rehearsed(rewritten, call_options)
        except Refusal as refusal:
            if refusal.has_own_loop and call_options.is_default:
                self._loops = capturing.subjects.with_own_loop()
                return self._call_with_closures(args, kwargs)
            return self._fall_back(refusal, args, kwargs, call_options)
        result = call(self._function, args, kwargs)
        self._dropped = frozenset()
        if call.refusal is not None:
            capturing.failures += 1
            self._fallbacks.note(call.refusal)
        elif call.difference is not None:
            capturing.failures += 1
            self._fallbacks.mismatch(call.difference)
        else:
            capturing.done += 1
            variant = build(rewritten, self._function, call_options, started, self._recorder)
            self._variants.append(variant)
        return result

    def _eagerly(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call_options: CallOptions
    ) -> Any:
        """Run the user's Python, with the options of this call.

        Raises:
            ConfigurationError: The objects that the options act on are unknown; nothing has run.
        """
        if call_options.is_default:
            return self._function(*args, **kwargs)
        scope = self._scope(args, kwargs)
        if scope is None or not any(guards.check(scope) for guards in self._observed):
            try:
                captured = self._capturing.capture(self._function, args, kwargs, call_options)
            except Refusal as refusal:
                raise options_not_applicable(self._function.__qualname__, refusal) from refusal
            captured.around.release()
            self._observed.append(captured.guards)
        with with_call_options(call_options, self._capturing.subjects):
            return self._function(*args, **kwargs)

    def _call_with_closures(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run eagerly, with the closures of optimizers such as LBFGS compiled."""
        with self._closures.in_place(self._loops):
            return self._function(*args, **kwargs)

    def _fall_back(
        self,
        refusal: Refusal,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call_options: CallOptions,
    ) -> Any:
        """Run eagerly, with the options of this call."""
        self._fallbacks.note(refusal)
        return self._eagerly(args, kwargs, call_options)

    def _verify(self, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a variant and undo its writes, then run the user's Python, and compare.

        Raises:
            VerificationError: They differ. The results of the user's Python stay.
        """
        self._calls += 1
        self._replays += 1
        call = rehearsal_of(variant, self._function, args, kwargs, self._capturing.subjects)
        result = call(self._function, args, kwargs)
        self._dropped = frozenset()  # the user's Python ran last
        variant.program.calls += 1
        check_same(call, self._function, self._options.verify)
        return result
