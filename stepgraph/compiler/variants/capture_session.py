"""The captures of one compiled step: their shared state and their limits."""

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


class CaptureSession:
    """Captures calls of a function and prepares them to be replayed.

    Every failure becomes a `Refusal` and is counted.

    Args:
        options: The options of `stepgraph.compile`.

    Attributes:
        subjects: The tracked objects of all captured calls.
        done: Number of captures that are replayed.
        failures: Number of captures that have failed.
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
            latest: Why the latest capture failed, if one did.
            variants: The number of variants.

        Raises:
            Refusal: `latest`, or this torch is not supported, or there are too many variants.
            GuardError: There are too many variants and no call may run eagerly.
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

    def record_varying_numbers(
        self,
        function: FunctionType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        variants: Sequence[Variant],
        scope: dict[str, Any] | None,
    ) -> None:
        """Record numbers that vary between calls, to trace them as symbols from then on.

        They may be arguments, attributes or globals.
        """
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
        """Trace a call without running it.

        Raises:
            Refusal: The call cannot be captured.
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
        """Return a call that runs a new variant and the user's Python, and compares them.

        Raises:
            Refusal: No program can be emitted.
        """
        call: RehearsedCall = self._attempt(RehearsedCall, rewritten, call_options, self.subjects)
        return call

    def _attempt(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run a stage of a capture; any failure becomes a refusal and is counted."""
        try:
            return work(*args)
        except ConfigurationError:
            raise
        except Refusal:
            self.failures += 1
            raise
        except Exception as error:  # the capture boundary: the eager call raises the user's errors
            self.failures += 1
            raise refusal_of(error) from error
