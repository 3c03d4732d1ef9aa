"""When the learning rate schedules of automatic optimization advance."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from stepgraph.errors import ConfigurationError
from stepgraph.train.configuration import SchedulerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stepgraph.train.module import Module


def by_steps(config: SchedulerConfig) -> bool:
    """Return whether a schedule advances by steps of its optimizer, without a metric."""
    return config.interval == "step" and not config.reduce_on_plateau


def due_after_step(config: SchedulerConfig, steps: int) -> bool:
    """Return whether a schedule advances when its optimizer has made `steps` steps."""
    return steps % config.frequency == 0


def due_after_epoch(config: SchedulerConfig, epoch: int) -> bool:
    """Return whether a schedule advances at the end of `epoch`, counted from 0."""
    return config.interval == "epoch" and (epoch + 1) % config.frequency == 0


def advance(module: Module, config: SchedulerConfig, metrics: dict[str, Tensor]) -> None:
    """Advance a schedule through the module's hook.

    Raises:
        ConfigurationError: A strict schedule's metric was not logged.
    """
    if not config.reduce_on_plateau:
        module.lr_scheduler_step(config.scheduler, None)
        return
    metric = metrics.get(str(config.monitor))
    if metric is not None:
        module.lr_scheduler_step(config.scheduler, metric)
    elif config.strict:
        raise missing_metric(type(config.scheduler).__name__, str(config.monitor), list(metrics))
    else:
        warnings.warn(
            f"{type(config.scheduler).__name__} was not advanced: {config.monitor!r} was not "
            f"logged; there are {list(metrics)}",
            RuntimeWarning,
            stacklevel=2,
        )


def missing_metric(who: str, monitor: str, known: Sequence[str]) -> ConfigurationError:
    """Return the error of something that watches a metric which nobody logs."""
    return ConfigurationError(
        f"{who} watches a metric that was not logged",
        at="`monitor`",
        found=f"{monitor!r}; logged were {list(known)}",
        why="it decides by the metric's value",
        hint=f"self.log({monitor!r}, value), or another `monitor`",
    )
