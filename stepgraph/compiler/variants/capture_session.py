"""The captures of one compiled step: what they need to know of each other, and their limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from stepgraph import config
from stepgraph.capture import (
    CallOptions,
    Captured,
    Refusal,
    TrackedObjects,
    capture,
    refusal_of,
    scalars_in,
    self_test,
    varied_number,
)
from stepgraph.compiler.fallbacks import VariantLimit
from stepgraph.compiler.options import Options
from stepgraph.compiler.variants.rehearse import RehearsedCall
from stepgraph.compiler.variants.rewrite import Rewritten, rewrite
from stepgraph.compiler.variants.variant import Variant
from stepgraph.errors import ConfigurationError, GuardError


class Capturing:
    """Captures calls of a function and prepares them to be replayed.

    Whatever fails on the way is a `Refusal`, and counted.

    Args:
        options: What `stepgraph.compile` was called with.

    Attributes:
        subjects: The optimizers, schedulers and whatever else the captured calls act on.
        done: How many captures are replayed.
        failures: How many have failed.
    """

    def __init__(self, options: Options) -> None:
        self.subjects = TrackedObjects()
        self.done = self.failures = 0
        self._options = options
        self._masters = options.masters()
        self._scalars: dict[str, Any] = {}
        self._dynamic: dict[str, None] = {}

    def admit(self, function: FunctionType, latest: Refusal | None, variants: int) -> None:
        """Refuse further captures once enough have been made, or have failed.

        Args:
            function: The step.
            latest: Why the latest capture has failed, if one has.
            variants: How many there are.

        Raises:
            Refusal: The latest one, or that this torch is not supported, or the number of variants.
            GuardError: Of that number, if no call may run eagerly.
        """
        if not self_test().passed:
            raise Refusal(f"this torch is not supported: {self_test().reason}")
        limits = config.current()
        if latest is not None and self.failures >= limits.max_capture_failures:
            raise latest.without_frames()
        if variants < limits.max_variants:
            return
        if self._options.on_fallback == "error":
            raise GuardError(
                f"{function.__qualname__} has no variant for these inputs",
                why=f"{variants} variants exist already, the limit",
                hint='on_fallback="warn" runs such calls eagerly; '
                "STEPGRAPH_MAX_VARIANTS raises the limit",
            )
        raise VariantLimit(f"no variant for these inputs, and {limits.max_variants} exist already")

    def note_what_varies(
        self,
        function: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        variants: Sequence[Variant],
        scope: dict[str, Any] | None,
    ) -> None:
        """Let numbers that vary between calls become symbolic: arguments, attributes, globals."""
        for name, value in scalars_in(function, args, kwargs).items():
            if self._scalars.setdefault(name, value) != value:
                self._dynamic[name] = None
        for variant in variants if scope else ():
            varied = varied_number(variant.captured.guards, scope or {})
            if varied is not None:
                self._dynamic[varied] = None

    def capture(
        self,
        function: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call_options: CallOptions,
    ) -> Captured:
        """Trace a call; nothing of it runs.

        Raises:
            Refusal: It cannot be captured.
        """
        captured: Captured = self._attempt(
            lambda: capture(
                function,
                args,
                kwargs,
                objects=self.subjects,
                options=call_options,
                dynamic=list(self._dynamic),
            )
        )
        return captured

    def rewrite(self, captured: Captured) -> Rewritten:
        """Run the passes over a captured call, and lower it.

        Raises:
            Refusal: A pass or the lowering fails.
        """
        options = self._options
        rewritten: Rewritten = self._attempt(
            rewrite, captured, options.pipeline, options.backend, self._masters
        )
        return rewritten

    def rehearsed(self, rewritten: Rewritten, call_options: CallOptions) -> RehearsedCall:
        """Return the call of a new variant, which runs beside the eager one.

        Raises:
            Refusal: It cannot be emitted.
        """
        call: RehearsedCall = self._attempt(RehearsedCall, rewritten, call_options, self.subjects)
        return call

    def _attempt(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do part of a capture; whatever fails there is a refusal, and counted."""
        try:
            return work(*args)
        except ConfigurationError:
            raise
        except Refusal:
            self.failures += 1
            raise
        except Exception as error:  # the capture boundary: the eager call shows its own error
            self.failures += 1
            raise refusal_of(error) from error
