"""End a training when a metric stops improving."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import override

from stepgraph.errors import ConfigurationError
from stepgraph.train.hooks import Callback
from stepgraph.train.module import Module
from stepgraph.train.optimization.schedules import missing_metric
from stepgraph.train.training import Training


class EarlyStopping(Callback):
    """Sets `trainer.should_stop` when a metric has not improved for `patience` checks.

    Checked after every validation; without validation, after every epoch.

    Args:
        monitor: Name of a logged metric.
        min_delta: A smaller change does not count as an improvement.
        patience: Number of checks without improvement before the training stops.
        mode: `"min"` or `"max"`.
        strict: Whether a metric that was not logged is an error.
        check_finite: Stop when the metric is NaN or infinite.

    Attributes:
        best_score: The best value so far.
        wait_count: Number of checks since the best value.
        stopped_epoch: The epoch in which it stopped the training, or None.
    """

    def __init__(
        self,
        monitor: str,
        *,
        min_delta: float = 0.0,
        patience: int = 3,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(
                "EarlyStopping: unknown mode",
                at="the argument `mode`",
                found=repr(mode),
                hint='"min" or "max"',
            )
        self.monitor, self.min_delta, self.patience = monitor, abs(min_delta), patience
        self.mode, self.strict, self.check_finite = mode, strict, check_finite
        self.best_score = math.inf if mode == "min" else -math.inf
        self.wait_count = 0
        self.stopped_epoch: int | None = None

    @property
    @override
    def state_key(self) -> str:
        return f"EarlyStopping[{self.monitor}, {self.mode}]"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "best_score": self.best_score,
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]

    @override
    def on_validation_end(self, trainer: Training, module: Module) -> None:
        if trainer.stage == "fit":
            self._check(trainer)

    @override
    def on_train_epoch_end(self, trainer: Training, module: Module) -> None:
        if not trainer.validates:
            self._check(trainer)

    def _check(self, trainer: Training) -> None:
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is None:
            if self.strict:
                raise missing_metric("EarlyStopping", self.monitor, list(trainer.callback_metrics))
            return
        value = float(trainer.processes.agreed(metric))
        if self.check_finite and not math.isfinite(value):
            self._stop(trainer)
        elif self._improves(value):
            self.best_score, self.wait_count = value, 0
        else:
            self.wait_count += 1
            if self.wait_count >= self.patience:
                self._stop(trainer)

    def _improves(self, value: float) -> bool:
        if self.mode == "min":
            return value < self.best_score - self.min_delta
        return value > self.best_score + self.min_delta

    def _stop(self, trainer: Training) -> None:
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
