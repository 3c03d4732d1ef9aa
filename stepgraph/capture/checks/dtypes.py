"""The dtype of the parameters, if the options of a call require one."""

from __future__ import annotations

from collections.abc import Iterable

from stepgraph.capture.objects import TrackedObject, TrackedOptimizer
from stepgraph.capture.options.call_options import CallOptions
from stepgraph.errors import ConfigurationError


def check_dtypes(options: CallOptions, objects: Iterable[TrackedObject]) -> None:
    """Check that every updated parameter has the dtype that the options require.

    Raises:
        ConfigurationError: A parameter has another dtype; nothing has run.
    """
    if options.dtype is None:
        return
    for tracked in objects:
        for parameter in tracked.parameters if isinstance(tracked, TrackedOptimizer) else ():
            if parameter.is_floating_point() and parameter.dtype != options.dtype:
                raise ConfigurationError(
                    "the precision of a step and the type of its parameters do not go together",
                    at=f"a parameter of {tracked.label} of shape {list(parameter.shape)}",
                    found=f"{parameter.dtype}, the precision requires {options.dtype}",
                    why="a step in low precision throughout does not cast the parameters",
                    hint='model.bfloat16() before the optimizer is made; "bf16-mixed" keeps '
                    "float32 parameters and casts them for each operation",
                )
