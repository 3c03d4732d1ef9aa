"""The advance of learning rate schedules in automatic optimization."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from stepgraph.errors import ConfigurationError
from stepgraph.train.module import Module
from stepgraph.train.optimization.configuration import SchedulerConfig
from stepgraph.train.training import Training


def by_steps(config: SchedulerConfig) -> bool:
    """Return whether a schedule advances by steps of its optimizer, without a metric."""
    return config.interval == "step" and not config.reduce_on_plateau


def due_after_step(config: SchedulerConfig, steps: int) -> bool:
    """Return whether a schedule advances when its optimizer has made `steps` steps."""
    return steps % config.frequency == 0


def due_after_epoch(config: SchedulerConfig, epoch: int) -> bool:
    """Return whether a schedule advances at the end of `epoch`, counted from 0."""
    return config.interval == "epoch" and (epoch + 1) % config.frequency == 0


class Schedules:
    """The schedules of automatic optimization that no composed step advances.

    Args:
        trainer: Provides progress and metrics.
        module: Provides the hook that advances a schedule.
        configs: The schedules.
    """

    def __init__(
        self, trainer: Training, module: Module, configs: Sequence[SchedulerConfig]
    ) -> None:
        self.trainer, self.module = trainer, module
        self.plain = [config for config in configs if not config.reduce_on_plateau]
        self.plateaus = [config for config in configs if config.reduce_on_plateau]

    def after_batch(self) -> None:
        """Advance schedules by steps, and after the last batch of an epoch those by epochs."""
        for config in self.plain:
            if self._after_step(config) or (
                self.trainer.is_last_batch and self._after_epoch(config)
            ):
                self._advance(config)

    def after_validation(self) -> None:
        """Advance schedules by steps that depend on a metric."""
        for config in self.plateaus:
            if self._after_step(config):
                self._advance(config)

    def after_epoch(self) -> None:
        """Advance schedules by epochs that depend on a metric."""
        for config in self.plateaus:
            if self._after_epoch(config):
                self._advance(config)

    def _after_step(self, config: SchedulerConfig) -> bool:
        """Return whether a schedule is due because its optimizer stepped in the latest batch."""
        progress, index = self.trainer.progress, config.optimizer_index
        return (
            config.interval == "step"
            and index in progress.stepped
            and due_after_step(config, progress.optimizer_steps[index])
        )

    def _after_epoch(self, config: SchedulerConfig) -> bool:
        return due_after_epoch(config, self.trainer.progress.epoch)

    def _advance(self, config: SchedulerConfig) -> None:
        """Advance a schedule through the module's hook.

        Raises:
            ConfigurationError: A strict schedule's metric was not logged.
        """
        self.module._log_refused = "lr_scheduler_step"
        try:
            if not config.reduce_on_plateau:
                self.module.lr_scheduler_step(config.scheduler, None)
                return
            metrics = self.trainer.metrics.callback
            metric = metrics.get(str(config.monitor))
            if metric is not None:
                metric = self.trainer.processes.agreed(metric)
                self.module.lr_scheduler_step(config.scheduler, metric)
            else:
                _metric_is_missing(config, list(metrics))
        finally:
            self.module._log_refused = None


def _metric_is_missing(config: SchedulerConfig, known: list[str]) -> None:
    name = type(config.scheduler).__name__
    if config.strict:
        raise missing_metric(name, str(config.monitor), known)
    warnings.warn(
        f"{name} was not advanced: {config.monitor!r} was not logged; there are {known}",
        RuntimeWarning,
        stacklevel=2,
    )


def missing_metric(owner: str, monitor: str, known: Sequence[str]) -> ConfigurationError:
    """Return the error for a monitored metric that was not logged."""
    return ConfigurationError(
        f"{owner} monitors a metric that was not logged",
        at="`monitor`",
        found=f"{monitor!r}; logged were {list(known)}",
        why="its decisions depend on the metric's value",
        hint=f"self.log({monitor!r}, value), or another `monitor`",
    )
