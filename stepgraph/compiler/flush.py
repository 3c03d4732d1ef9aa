"""The update of a window that ends early."""

from __future__ import annotations

from stepgraph.capture import Captured, Refusal
from stepgraph.errors import ConfigurationError
from stepgraph.ir import partition
from stepgraph.lowering.emit import emit
from stepgraph.passes import Pipeline, UpdateFromShortWindow
from stepgraph.runtime import Program, autocast_devices


def flush(captured: Captured, *, factor: float) -> None:
    """Run the actions of the last call of a window: clipping, updates, schedules, averages.

    Args:
        captured: The step, traced with the options of the last call. Its tracked objects and the
            parameters that it updates are changed.
        factor: The factor by which the gradients are multiplied first.

    Raises:
        ConfigurationError: The update uses a value that only a whole call computes.
    """
    graph, _ = Pipeline((UpdateFromShortWindow(factor),))(partition(captured.flat))
    emitted = emit(graph.flat(), captured.subjects)
    Program(emitted.function, autocast_devices=autocast_devices())(*captured.inputs)


def flush_not_possible(step: str, refusal: Refusal) -> ConfigurationError:
    """Return the error for a window that cannot be flushed because there is no capture."""
    return ConfigurationError(
        f"the window of {step} cannot be flushed",
        at=refusal.at,
        found=refusal.reason,
        why="the actions of the last call are found by tracing the latest call again",
        hint="call the step once in this process before, or complete the window",
    )
