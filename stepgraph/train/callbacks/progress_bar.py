"""A progress bar; shown in a terminal only."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import override

from stepgraph.train.hooks import Callback
from stepgraph.train.module import Module
from stepgraph.train.training import Training

_REFRESH_S = 0.1


class ProgressBar(Callback):
    """Shows epoch, batch, speed, and metrics logged with `prog_bar=True`.

    No thread refreshes it: it is updated after batches, at most ten times a second. Metrics are
    read from the device every `log_every_n_steps` batches only.

    Args:
        console: The console to write to; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._metrics = ""
        self._refreshed = 0.0

    @override
    def on_train_start(self, trainer: Training, module: Module) -> None:
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            auto_refresh=False,
        )
        self._bar.start()

    @override
    def on_train_epoch_start(self, trainer: Training, module: Module) -> None:
        if self._bar is not None:
            total = trainer.num_training_batches
            self._task = self._bar.add_task(
                "train", total=total, epoch=trainer.current_epoch, speed="", metrics=""
            )

    @override
    def on_train_batch_end(
        self, trainer: Training, module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        reads = (batch_idx + 1) % trainer.log_every_n_steps == 0 or trainer.is_last_batch
        if reads:
            shown = trainer.progress_bar_metrics.items()
            self._metrics = "  ".join(f"{name} {value:.4g}" for name, value in shown)
        if reads or time.monotonic() - self._refreshed > _REFRESH_S:
            self._show(batch_idx + 1)

    def _show(self, done: int) -> None:
        if self._bar is None or self._task is None:
            return
        task = self._bar.tasks[self._bar.task_ids.index(self._task)]
        elapsed = task.elapsed or 0.0
        self._bar.update(
            self._task,
            completed=done,
            speed=f"{done / elapsed:.1f} batches/s" if elapsed else "",
            metrics=self._metrics,
            refresh=True,
        )
        self._refreshed = time.monotonic()

    @override
    def on_train_end(self, trainer: Training, module: Module) -> None:
        self._stop()

    @override
    def on_exception(self, trainer: Training, module: Module, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
