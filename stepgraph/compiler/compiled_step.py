"""`CompiledStep`: what `stepgraph.compile` returns."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from stepgraph import config
from stepgraph.capture import (
    Captured,
    Refusal,
    Subjects,
    capture,
    entry_reason,
    refusal_of,
    scalars_in,
    scope_reader,
    self_test,
)
from stepgraph.compiler.closures import ClosureSteps
from stepgraph.compiler.explanation import Explanation, explain
from stepgraph.compiler.fallbacks import Fallbacks
from stepgraph.compiler.options import Options
from stepgraph.compiler.variant import Variant, build, rehearse
from stepgraph.errors import GuardError
from stepgraph.ir import StepGraph
from stepgraph.runtime import NeedsEager, results_of, watching

Owner = Callable[[], Any]
"""Returns the object a step is bound to; a weak reference, or a constant function."""


class CompiledStep:
    """A training step that is captured on its second call and replayed from then on.

    Behaves like the function it wraps. In a class body it is a descriptor: every instance gets
    a compiled step of its own, with variants of its own.

    Args:
        function: The user's step, unbound. Not changed.
        options: What `stepgraph.compile` was called with.
        owner: For a method, returns the object it is bound to.
    """

    def __init__(
        self, function: FunctionType, options: Options, owner: Owner | None = None
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._owner = owner
        self._instances: dict[int, tuple[weakref.ref[Any], CompiledStep]] = {}
        self._start_over()

    def _start_over(self) -> None:
        self._variants: list[Variant] = []
        self._subjects = Subjects()
        self._fallbacks = Fallbacks(self._function.__qualname__, self._options.on_fallback)
        self._closures = ClosureSteps(lambda closure: CompiledStep(closure, self._options))
        self._loops: list[Any] = []
        self._scope = scope_reader(self._function)
        self._scalars: dict[str, Any] = {}
        self._dynamic: dict[str, None] = {}
        self._calls = self._replays = self._captures = self._failures = 0
        self._first_call_ms: float | None = None
        self._release = weakref.finalize(self, _release, self._subjects, self._variants)

    def __get__(self, instance: Any, owner: type | None = None) -> CompiledStep:
        if instance is None:
            return self
        known = self._instances.get(id(instance))
        if known is not None and known[0]() is instance:
            return known[1]
        forget = functools.partial(self._instances.pop, id(instance), None)
        reference = weakref.ref(instance, lambda _: forget())
        step = CompiledStep(self._function, self._options, reference)
        self._instances[id(instance)] = (reference, step)
        return step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the step, or run it eagerly and perhaps capture it."""
        if torch.compiler.is_compiling():
            return self.eager(*args, **kwargs)  # part of a larger trace
        if self._owner is not None:
            args = (self._owner(), *args)
        refused = entry_reason()
        if refused is None and self._variants:
            scope = self._scope(args, kwargs)
            for variant in self._variants:
                if scope is not None and variant.matches(scope):
                    try:
                        result = variant.run(args, kwargs)
                    except NeedsEager as reason:
                        refused = str(reason)
                        break
                    self._calls += 1
                    self._replays += 1
                    return result
        return self._call_unmatched(args, kwargs, refused)

    def eager(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's Python."""
        owner = () if self._owner is None else (self._owner(),)
        return self._function(*owner, *args, **kwargs)

    def explain(self) -> Explanation:
        """Return what was captured, and why not where it was not."""
        return explain(
            name=self._function.__qualname__,
            variants=self._variants,
            captures=self._captures,
            replays=self._replays,
            calls=self._calls,
            fallbacks=self._fallbacks,
            first_call_ms=self._first_call_ms,
            closures=[closure.explain() for closure in self._closures.all],
        )

    @property
    def captured_graphs(self) -> tuple[StepGraph, ...]:
        """The step graphs as captured, one for each variant."""
        return tuple(variant.graph for variant in self._variants)

    @property
    def graphs(self) -> tuple[StepGraph, ...]:
        """The step graphs as replayed, one for each variant, at ATen level."""
        return self.captured_graphs

    def flush(self) -> bool:
        """Update from a window that is not full. Returns False: nothing is ever pending."""
        return False

    def reset(self) -> None:
        """Forget all variants and observations; the next call is eager again."""
        self._release()
        self._start_over()

    def rebind(self, function: FunctionType) -> None:
        """Take another function of the same code, with closure variables of its own."""
        self._function = function
        self._scope = scope_reader(function)
        for variant in self._variants:
            variant.rebind(function)

    def _call_unmatched(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], refused: str | None
    ) -> Any:
        """Capture a new variant, or say why not; either way this call runs eagerly."""
        self._calls += 1
        if config.current().disable:
            return self._function(*args, **kwargs)
        if refused is not None:
            return self._fall_back(Refusal(refused), args, kwargs)
        for name, value in scalars_in(self._function, args, kwargs).items():
            if self._scalars.setdefault(name, value) != value:
                self._dynamic[name] = None  # a number that varies becomes symbolic
        if self._first_call_ms is None:
            return self._first_call(args, kwargs)
        if self._loops:
            return self._call_with_closures(args, kwargs)
        return self._capture_and_call(args, kwargs)

    def _first_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = time.perf_counter()
        result = self._function(*args, **kwargs)
        self._first_call_ms = (time.perf_counter() - start) * 1e3
        return result

    def _capture_and_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        started = time.perf_counter()
        try:
            self._admit()
            captured = self._capture(args, kwargs)
            rehearsed = self._attempt(rehearse, captured)
        except Refusal as refusal:
            if refusal.keeps_own_loop:
                self._loops = self._subjects.with_own_loop()
                return self._call_with_closures(args, kwargs)
            return self._fall_back(refusal, args, kwargs)
        rehearsal = rehearsed.rehearsal
        own = [s.value for s in captured.optimizers if not s.steps_as_torch()]
        with (
            results_of(own) as returned,
            watching(rehearsed.owner, rehearsed.method, rehearsal.compare),
        ):
            result = self._function(*args, **kwargs)
        if returned:
            self._failures += 1
            self._fallbacks.note(Refusal("an optimizer whose step() returns a value"))
            return result
        if rehearsed.owner is None:
            rehearsal.compare()
        rehearsal.compare_result(result)
        if rehearsal.difference is None:
            self._captures += 1
            self._variants.append(build(captured, self._function, started))
        else:
            self._failures += 1
            self._fallbacks.mismatch(rehearsal.difference)
        return result

    def _admit(self) -> None:
        """Refuse further captures once enough have been made, or have failed."""
        limits = config.current()
        if not self_test().passed:
            raise Refusal(f"this torch is not supported: {self_test().reason}")
        latest = self._fallbacks.latest
        if latest is not None and self._failures >= limits.max_capture_failures:
            raise latest
        if len(self._variants) < limits.max_variants:
            return
        if self._options.on_fallback == "error":
            raise GuardError(
                f"{self._function.__qualname__} has no variant for these inputs",
                why=f"{len(self._variants)} variants exist already, the limit",
                hint='on_fallback="warn" runs such calls eagerly; '
                "STEPGRAPH_MAX_VARIANTS raises the limit",
            )
        raise Refusal(f"no variant for these inputs, and {limits.max_variants} exist already")

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
        dynamic = list(self._dynamic)
        captured: Captured = self._attempt(
            lambda: capture(self._function, args, kwargs, subjects=self._subjects, dynamic=dynamic)
        )
        return captured

    def _attempt(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do part of a capture; whatever fails there is a refusal, and counted."""
        try:
            return work(*args)
        except Exception as error:  # the capture boundary: the eager call shows its own error
            self._failures += 1
            raise refusal_of(error) from error

    def _call_with_closures(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run eagerly, with the closures of LBFGS and its like compiled."""
        with self._closures.in_place(self._loops):
            return self._function(*args, **kwargs)

    def _fall_back(self, refusal: Refusal, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._fallbacks.note(refusal)
        return self._function(*args, **kwargs)


def _release(subjects: Subjects, variants: list[Variant]) -> None:
    """Take what a compiled step put into module globals out of them."""
    for subject in subjects.all:
        subject.forget()
    for variant in variants:
        variant.captured.around.release()
