"""Write learning rates to the loggers."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from stepgraph.errors import ConfigurationError
from stepgraph.train.hooks import Callback
from stepgraph.train.module import Module
from stepgraph.train.training import Training


class LearningRateMonitor(Callback):
    """Writes the learning rate of every parameter group to the loggers.

    They are named `lr-Adam`, `lr-Adam-1` for a second optimizer of the class, with `/pg1` appended
    for the first of several groups, or by a schedule's `name`.

    Args:
        logging_interval: `"step"`, `"epoch"`, or None for both.

    Raises:
        ConfigurationError: The interval is unknown, or the trainer has no logger.
    """

    def __init__(self, logging_interval: str | None = None) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigurationError(
                "LearningRateMonitor: unknown interval",
                at="the argument `logging_interval`",
                found=repr(logging_interval),
                hint='"step", "epoch" or None',
            )
        self.logging_interval = logging_interval

    @override
    def on_train_start(self, trainer: Training, module: Module) -> None:
        if trainer.rank == 0 and not trainer.loggers:
            raise ConfigurationError(
                "LearningRateMonitor has nowhere to write to",
                found="a Trainer without a logger",
                hint="Trainer(logger=CSVLogger(folder))",
            )

    @override
    def on_train_batch_start(
        self, trainer: Training, module: Module, batch: Any, batch_idx: int
    ) -> None:
        due = trainer.progress.batches % trainer.log_every_n_steps == 0
        if self.logging_interval != "epoch" and due:
            self._write(trainer)

    @override
    def on_train_epoch_start(self, trainer: Training, module: Module) -> None:
        if self.logging_interval != "step":
            self._write(trainer)

    def _write(self, trainer: Training) -> None:
        values = {
            name: torch.tensor(float(rate), dtype=torch.float64)
            for name, rate in learning_rates(trainer).items()
        }
        trainer.metrics.callback.update(values)
        trainer.write(values)


def learning_rates(trainer: Training) -> dict[str, Any]:
    """Return the learning rate of every parameter group, by name."""
    found: dict[str, Any] = {}
    seen: dict[str, int] = {}
    names = {c.optimizer_index: c.name for c in trainer.lr_scheduler_configs if c.name}
    for index, optimizer in enumerate(trainer.updates.optimizers):
        name = names.get(index) or f"lr-{type(optimizer).__name__}"
        repeats = seen.get(name, 0)
        seen[name] = repeats + 1
        if repeats:
            name = f"{name}-{repeats}"
        groups = optimizer.param_groups
        for i, group in enumerate(groups, start=1):
            suffix = f"/{group.get('name', f'pg{i}')}" if len(groups) > 1 else ""
            found[name + suffix] = group["lr"]
    return found
