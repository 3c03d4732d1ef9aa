"""`Training`: the state of a training, shared by the loop, checkpoints and callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stepgraph.compiler import CompiledStep
from stepgraph.train.hooks import Callback, HookTable
from stepgraph.train.logging.loggers import Logger
from stepgraph.train.logging.metrics import Metrics, numbers
from stepgraph.train.loop.batches import Epoch
from stepgraph.train.loop.processes import Processes
from stepgraph.train.loop.progress import Progress
from stepgraph.train.optimization.configuration import SchedulerConfig
from stepgraph.train.optimization.optimizers import OptimizerWrapper
from stepgraph.train.optimization.precision import Precision
from stepgraph.train.optimization.updates import Updates
from stepgraph.train.options import Options


class Training(ABC):
    """The options, the progress and the objects of a training.

    `Trainer` extends it by `fit` and `validate`. The loop, checkpoints and callbacks use this class
    only, so that they do not import `Trainer`.

    Args:
        options: The trainer's options, checked.
        processes: The processes of the training.
        default_root_dir: Folder of logs and checkpoints.
        loggers: The loggers that write metrics.
        callbacks: All callbacks, in the order in which they run.
    """

    module: nn.Module | None
    hooks: HookTable
    saving_hooks: HookTable

    def __init__(
        self,
        options: Options,
        processes: Processes,
        *,
        default_root_dir: Path,
        loggers: list[Logger],
        callbacks: list[Callback],
    ) -> None:
        self.options, self.processes = options, processes
        self.device = processes.device
        self.rank, self.world_size = processes.rank, processes.world_size
        self.default_root_dir, self.loggers, self.callbacks = default_root_dir, loggers, callbacks
        self._read_options()
        self._forget()

    def _read_options(self) -> None:
        options = self.options
        self.max_epochs, self.min_epochs = options.epochs, options.min_epochs
        self.max_steps = options.max_steps
        self.accumulate_grad_batches = options.accumulation.get(0, 1)
        self.gradient_clip_val = options.clip_limit
        self.gradient_clip_algorithm = options.clip_algorithm
        self.limit_train_batches = options.limit_train_batches
        self.limit_val_batches = options.limit_val_batches
        self.check_val_every_n_epoch = options.check_val_every_n_epoch
        self.log_every_n_steps = options.log_every_n_steps
        self.precision = Precision(options.precision_name, self.device.type)

    def _forget(self) -> None:
        """Go back to the state before the first fit."""
        self.progress, self.metrics = Progress(), Metrics()
        self.updates = Updates([])
        self.lr_scheduler_configs: list[SchedulerConfig] = []
        self.frequencies: list[int] = []
        self.train_loader: Any = None
        self.epoch_batches: Epoch | None = None
        self.num_training_batches: int | None = None
        self.val_interval: int | None = None
        self.validates = False
        self.steps: tuple[CompiledStep, ...] = ()
        self.is_last_batch = self.should_stop = self.in_training_step = False
        self.global_step = 0
        self.stage: str | None = None

    @property
    def current_epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self.progress.epoch

    @property
    def optimizers(self) -> list[OptimizerWrapper]:
        """The optimizers, wrapped as `Module.optimizers` returns them."""
        return self.updates.wrappers

    @property
    def optimizer_steps(self) -> list[int]:
        """Number of steps of each optimizer."""
        return self.progress.optimizer_steps

    @property
    def schedulers(self) -> list[Any]:
        """The user's schedulers."""
        return [config.scheduler for config in self.lr_scheduler_configs]

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """Every metric by name, the latest value, on its device."""
        return self.metrics.callback

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The metrics for loggers."""
        return self.metrics.logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The metrics of the progress bar; reading them waits for the device."""
        return numbers(self.metrics.progress_bar)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Number of updates that the training will make; infinite without a limit."""
        return self.options.updates_in(self.num_training_batches)

    @abstractmethod
    def save_checkpoint(self, filepath: str | Path) -> None:
        """Write the state needed to resume to one file, atomically."""

    def write(self, values: dict[str, Tensor]) -> None:
        """Pass metrics to the loggers, with one copy from the device."""
        if not values or not self.loggers:
            return
        as_numbers = numbers(values)
        for logger in self.loggers:
            logger.log_metrics(as_numbers, self.global_step)
            logger.save()

    def reduce_metric(self, value: Tensor, operation: str) -> Tensor:
        """Combine a metric between processes."""
        return self.processes.reduce(value, operation)

    def finished(self) -> bool:
        """Return whether no further epoch may begin."""
        if 0 <= self.max_steps <= self.global_step:
            return True
        if 0 <= self.max_epochs <= self.progress.epoch:
            return True
        return self.should_stop and self.progress.epoch >= self.min_epochs

    def stops_in_epoch(self) -> bool:
        """Return whether the present epoch ends after this batch."""
        if 0 <= self.max_steps <= self.global_step:
            return True
        return self.should_stop and self.progress.epoch >= self.min_epochs
