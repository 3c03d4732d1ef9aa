"""The update of a window that ends early."""

from __future__ import annotations

from stepgraph.capture import Captured, Refusal
from stepgraph.errors import ConfigurationError
from stepgraph.ir import partition
from stepgraph.lowering.emit import emit
from stepgraph.passes import Pipeline, UpdateFromShortWindow
from stepgraph.runtime import Program, autocast_devices


def flush(captured: Captured, *, factor: float) -> None:
    """Do what waits for the last call of a window.

    Args:
        captured: The step, traced with the options of the last call. Its tracked objects and the
            parameters that it updates are changed.
        factor: By what the gradients are multiplied before.

    Raises:
        ConfigurationError: The update uses a value that only a whole call computes.
    """
    graph, _ = Pipeline((UpdateFromShortWindow(factor),))(partition(captured.flat))
    emitted = emit(graph.flat(), captured.subjects)
    Program(emitted.function, autocast_devices=autocast_devices())(*captured.inputs)


def no_flush(step: str, refusal: Refusal) -> ConfigurationError:
    """Return the error of a window that cannot be flushed, for want of a capture."""
    return ConfigurationError(
        f"the window of {step} cannot be flushed",
        at=refusal.at,
        found=refusal.reason,
        why="what waits for the last call is found by tracing the latest one again",
        hint="call the step once in this process before, or come to the end of the window",
    )
