"""The default callbacks of a trainer, and the order of all callbacks."""

from __future__ import annotations

from stepgraph.errors import ConfigurationError
from stepgraph.train.callbacks import (
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ProgressBar,
)
from stepgraph.train.hooks import Callback


def standard_callbacks(
    given: list[Callback],
    *,
    progress_bar: bool,
    checkpointing: bool,
    accumulation: dict[int, int],
) -> list[Callback]:
    """Return the callbacks of a trainer, in the order in which they are called.

    Args:
        given: The user's callbacks.
        progress_bar: Whether to show a progress bar.
        checkpointing: Whether to save checkpoints.
        accumulation: The trainer's schedule of accumulation. A
            `GradientAccumulationScheduler` among `given` is written into it.

    Raises:
        ConfigurationError: They contradict each other or the trainer's arguments.
    """
    callbacks = list(given)
    for one in callbacks:
        if not isinstance(one, Callback):
            raise ConfigurationError(
                "Trainer: a callback is not a stepgraph.Callback",
                at="the argument `callbacks`",
                found=type(one).__name__,
                hint="class MyCallback(stepgraph.Callback)",
            )
        if isinstance(one, GradientAccumulationScheduler):
            if accumulation != {0: 1}:
                raise ConfigurationError(
                    "Trainer: accumulation is given twice",
                    found=f"accumulate_grad_batches={accumulation}, and {type(one).__name__}",
                    hint="one of the two",
                )
            accumulation.clear()
            accumulation.update(one.scheduling)
    _check_keys(callbacks)
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    if saves and not checkpointing:
        raise ConfigurationError(
            "Trainer: enable_checkpointing=False with a ModelCheckpoint",
            at="the argument `enable_checkpointing`",
            why="the argument disables checkpoints, and the callback saves them",
            hint="leave one of them out",
        )
    if checkpointing and not saves:
        callbacks.append(ModelCheckpoint())
    if progress_bar and not any(isinstance(one, ProgressBar) for one in callbacks):
        callbacks.append(ProgressBar())
    return callbacks


def _check_keys(callbacks: list[Callback]) -> None:
    keys = [one.state_key for one in callbacks]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ConfigurationError(
            "Trainer: two callbacks would share their state in a checkpoint",
            at="the argument `callbacks`",
            found=", ".join(twice),
            hint="override `state_key`, or give ModelCheckpoints different monitors or folders",
        )
