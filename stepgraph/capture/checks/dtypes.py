"""The type of the parameters, where the options of a call ask for one."""

from __future__ import annotations

from collections.abc import Iterable

from stepgraph.capture.objects import TrackedObject, TrackedOptimizer
from stepgraph.capture.options.call_options import CallOptions
from stepgraph.errors import ConfigurationError


def check_dtypes(options: CallOptions, objects: Iterable[TrackedObject]) -> None:
    """Check that every parameter that is updated has the type that the options ask for.

    Raises:
        ConfigurationError: One has another; nothing has run.
    """
    if options.dtype is None:
        return
    for tracked in objects:
        for parameter in tracked.parameters if isinstance(tracked, TrackedOptimizer) else ():
            if parameter.is_floating_point() and parameter.dtype != options.dtype:
                raise ConfigurationError(
                    "the precision of a step and the type of its parameters do not go together",
                    at=f"a parameter of {tracked.label} of shape {list(parameter.shape)}",
                    found=f"{parameter.dtype}, the precision asks for {options.dtype}",
                    why="a step in low precision throughout updates the parameters as they are",
                    hint='model.bfloat16() before the optimizer is made; "bf16-mixed" keeps '
                    "float32 parameters and casts what it computes with",
                )
