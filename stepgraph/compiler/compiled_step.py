"""`CompiledStep`: what `stepgraph.compile` returns."""

from __future__ import annotations

import functools
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from stepgraph import config
from stepgraph.capture import (
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
from stepgraph.compiler.options import Options
from stepgraph.compiler.variant import Variant, build, rehearse
from stepgraph.errors import CaptureError, ConfigurationError, GuardError
from stepgraph.ir import StepGraph
from stepgraph.runtime import watching


class CompiledStep:
    """A training step that is captured on its second call and replayed from then on.

    Behaves like the function it wraps. In a class body it is a descriptor: every instance gets
    a compiled step of its own.

    Args:
        function: The user's step: a function or a bound method. Not changed.
        options: What `stepgraph.compile` was called with.
    """

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._instances: dict[int, tuple[Any, CompiledStep]] = {}
        self._forget()

    def _forget(self) -> None:
        self._variants: list[Variant] = []
        self._subjects = Subjects()
        self._fallbacks: Counter[Refusal] = Counter()
        self._warned: set[str] = set()
        self._last_fallback: Refusal | None = None
        self._failures = 0
        self._calls = 0
        self._replays = 0
        self._captures = 0
        self._first_call_ms: float | None = None
        self._scalars: dict[str, Any] = {}
        self._dynamic: dict[str, None] = {}
        self._scope = scope_reader(self._function)
        self._closures = ClosureSteps(lambda closure: CompiledStep(closure, self._options))
        self._loops: list[Any] = []

    def rebind(self, function: Callable[..., Any]) -> None:
        """Take another function of the same code, with closure variables of its own."""
        self._function = function
        self._scope = scope_reader(function)
        for variant in self._variants:
            variant.rebind(function)

    def __get__(self, instance: Any, owner: type | None = None) -> CompiledStep:
        if instance is None:
            return self
        known = self._instances.get(id(instance))
        if known is not None and known[0]() is instance:
            return known[1]
        function = self._function.__get__(instance, owner)  # type: ignore[attr-defined]
        step = CompiledStep(function, self._options)
        forget = functools.partial(self._instances.pop, id(instance), None)
        self._instances[id(instance)] = (weakref.ref(instance, lambda _: forget()), step)
        return step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        refused = entry_reason()
        if refused is None:
            scope = self._scope(args, kwargs)
            if scope is not None:
                for variant in self._variants:
                    if variant.matches(scope):
                        self._replays += 1
                        self._calls += 1
                        return variant.run(args, kwargs)
        return self._call_unmatched(args, kwargs, refused)

    def eager(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's Python."""
        return self._function(*args, **kwargs)

    def explain(self) -> Explanation:
        """Return what was captured, and why not where it was not."""
        return explain(
            name=getattr(self._function, "__qualname__", repr(self._function)),
            variants=self._variants,
            captures=self._captures,
            replays=self._replays,
            calls=self._calls,
            fallbacks=self._fallbacks,
            last_fallback=self._last_fallback,
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
        """Update from a window that is not full. Returns False where nothing is pending."""
        return False

    def reset(self) -> None:
        """Forget all variants and observations; the next call is eager again."""
        self._forget()

    def _call_unmatched(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], refused: str | None
    ) -> Any:
        """Capture a new variant, or say why not; either way this call runs eagerly."""
        self._calls += 1
        if config.current().disable or torch.compiler.is_compiling():
            return self._function(*args, **kwargs)
        self._note_scalars(args, kwargs)
        if refused is not None:
            return self._fall_back(Refusal(refused), args, kwargs)
        if self._calls == 1:
            return self._first_call(args, kwargs)
        if self._loops:
            return self._call_with_closures(args, kwargs)
        try:
            self._admit()
            variant = self._capture(args, kwargs)
        except Refusal as refusal:
            if refusal.keeps_own_loop:
                self._loops = self._subjects.with_own_loop()
                return self._call_with_closures(args, kwargs)
            return self._fall_back(refusal, args, kwargs)
        return self._rehearse(variant, args, kwargs)

    def _call_with_closures(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run eagerly, with the closures of LBFGS and its like compiled."""
        with self._closures.in_place(self._loops):
            return self._function(*args, **kwargs)

    def _first_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = time.perf_counter()
        result = self._function(*args, **kwargs)
        self._first_call_ms = (time.perf_counter() - start) * 1e3
        return result

    def _admit(self) -> None:
        """Refuse further captures once enough have been made, or have failed."""
        limits = config.current()
        if not self_test().passed:
            raise Refusal(f"this torch is not supported: {self_test().reason}")
        if self._last_fallback is not None and self._failures >= limits.max_capture_failures:
            raise self._last_fallback
        if len(self._variants) >= limits.max_variants:
            reason = f"no variant for these inputs: {limits.max_variants} variants exist already"
            if self._options.on_fallback == "error":
                raise GuardError(
                    f"{self.__name__} has no variant for these inputs",  # type: ignore[attr-defined]
                    why=f"{len(self._variants)} variants exist already, the limit",
                    hint='on_fallback="warn" runs such calls eagerly; '
                    "STEPGRAPH_MAX_VARIANTS raises the limit",
                )
            raise Refusal(reason)

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        started = time.perf_counter()
        try:
            captured = capture(
                self._function, args, kwargs, subjects=self._subjects, dynamic=list(self._dynamic)
            )
            return build(captured, self._function, started)
        except Refusal:
            self._failures += 1
            raise

    def _rehearse(self, variant: Variant, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call eagerly and keep the variant if it would have computed the same."""
        try:
            rehearsed = rehearse(variant)
        except Exception as error:  # the step's own error shows in the eager call
            self._failures += 1
            return self._fall_back(refusal_of(error), args, kwargs)
        rehearsal = rehearsed.rehearsal
        with watching(rehearsed.owner, rehearsed.method, rehearsal.compare):
            result = self._function(*args, **kwargs)
        if rehearsed.owner is None:
            rehearsal.compare()
        rehearsal.compare_result(result)
        if rehearsal.difference is not None:
            self._failures += 1
            self._note(Refusal(f"differs from eager at {rehearsal.difference}"))
        else:
            self._captures += 1
            self._variants.append(variant)
        return result

    def _fall_back(self, refusal: Refusal, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._note(refusal)
        return self._function(*args, **kwargs)

    def _note(self, refusal: Refusal) -> None:
        """Record a fallback, and tell the user as they asked."""
        self._fallbacks[refusal] += 1
        self._last_fallback = refusal
        if self._options.on_fallback == "error":
            raise CaptureError(
                f"{self.__name__} cannot be captured",  # type: ignore[attr-defined]
                at=refusal.at,
                found=refusal.reason,
                why='on_fallback="error" forbids to run it eagerly',
                hint=refusal.hint,
            )
        if self._options.on_fallback == "warn" and refusal.reason not in self._warned:
            self._warned.add(refusal.reason)
            warnings.warn(
                f"stepgraph runs {self.__name__} eagerly: {refusal}",  # type: ignore[attr-defined]
                stacklevel=4,
            )

    def _note_scalars(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember which numbers among the arguments vary, to make them symbolic."""
        for name, value in scalars_in(self._function, args, kwargs).items():
            if name in self._scalars and self._scalars[name] != value:
                self._dynamic[name] = None
            self._scalars[name] = value


def check_callable(step: Any) -> None:
    """Refuse what is not a training step."""
    if not callable(step) or isinstance(step, torch.nn.Module | type):
        raise ConfigurationError(
            "stepgraph.compile takes a function or a method",
            found=type(step).__name__,
            hint="decorate the training step itself: the function that calls backward() and step()",
        )
