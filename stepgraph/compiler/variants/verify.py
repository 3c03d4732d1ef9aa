"""`verify=n`: comparison of the first replays of a variant with the user's Python."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import Any

from stepgraph.capture import TrackedObjects
from stepgraph.compiler.variants.rehearse import RehearsedCall
from stepgraph.compiler.variants.variant import Variant
from stepgraph.errors import VerificationError


def rehearsal_of(
    variant: Variant,
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    subjects: TrackedObjects,
) -> RehearsedCall:
    """Return a call that runs a variant and undoes its writes, then runs the user's Python.

    Args:
        variant: A variant that matches the arguments.
        function: The step.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        subjects: The tracked objects of the step.
    """
    captured = replace(variant.captured, inputs=variant.inputs(function, args, kwargs))
    rewritten = replace(variant.rewritten, captured=captured)
    return RehearsedCall(rewritten, variant.call_options, subjects)


def check_same(call: RehearsedCall, function: FunctionType, calls: int) -> None:
    """Check the result of a call of `rehearsal_of`; `calls` is the option `verify`.

    Raises:
        VerificationError: Variant and user's Python differ. The results of the latter are kept.
    """
    if call.difference is not None:
        raise VerificationError(
            f"{function.__qualname__} differs from the eager step",
            at=call.difference,
            found="different bits",
            why=f"verify={calls} compares the first replays with eager",
            hint="report it; STEPGRAPH_DISABLE=1 runs the step eagerly",
        )
