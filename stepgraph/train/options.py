"""The trainer's options, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from stepgraph.errors import ConfigurationError
from stepgraph.train.loop.batches import checked_limit
from stepgraph.train.optimization.clipping import checked_algorithm, checked_value
from stepgraph.train.optimization.precision import Precision

_DEFAULT_EPOCHS = 1000


@dataclass
class Options:
    """The arguments of `Trainer(...)`; see there.

    Attributes:
        epochs: Largest number of epochs, -1 for no limit.
        accumulation: Number of accumulated batches, by the epoch from which it applies.
        clip_limit: Limit for gradients, or None.
        clip_algorithm: `"norm"` or `"value"`.
        precision_name: One of `precision.CHOICES`.
    """

    max_epochs: int | None
    min_epochs: int
    max_steps: int
    accumulate_grad_batches: Any
    gradient_clip_val: Any
    gradient_clip_algorithm: Any
    precision: Any
    limit_train_batches: Any
    limit_val_batches: Any
    val_check_interval: Any
    check_val_every_n_epoch: int | None
    log_every_n_steps: int
    detect_anomaly: bool
    seed: int | None
    compile: bool
    epochs: int = field(init=False)
    accumulation: dict[int, int] = field(init=False)
    clip_limit: float | None = field(init=False)
    clip_algorithm: str = field(init=False)
    precision_name: str = field(init=False)

    def __post_init__(self) -> None:
        if self.max_epochs is not None:
            _whole("max_epochs", self.max_epochs, least=-1)
        _whole("min_epochs", self.min_epochs, least=0)
        _whole("max_steps", self.max_steps, least=-1)
        _whole("log_every_n_steps", self.log_every_n_steps, least=1)
        if self.check_val_every_n_epoch is not None:
            _whole("check_val_every_n_epoch", self.check_val_every_n_epoch, least=1)
        default = _DEFAULT_EPOCHS if self.max_steps < 0 else -1
        self.epochs = default if self.max_epochs is None else self.max_epochs
        self.accumulation = checked_accumulation(
            self.accumulate_grad_batches, "accumulate_grad_batches"
        )
        self.clip_limit = checked_value(self.gradient_clip_val)
        self.clip_algorithm = checked_algorithm(self.gradient_clip_algorithm)
        self.precision_name = Precision.named(self.precision)
        checked_limit(self.limit_train_batches, "limit_train_batches")
        checked_limit(self.limit_val_batches, "limit_val_batches")
        checked_limit(self.val_check_interval, "val_check_interval")
        if self.val_check_interval == 0:
            raise _no_interval(self.val_check_interval)

    def accumulation_in(self, epoch: int) -> int:
        """Return the number of accumulated batches in an epoch."""
        reached = [start for start in self.accumulation if start <= epoch]
        return self.accumulation[max(reached)] if reached else 1

    def updates_in(self, num_batches: int | None) -> int | float:
        """Return the number of updates of a training whose epochs have `num_batches` batches.

        Infinite without a limit, or if `num_batches` is unknown.
        """
        bound = math.inf if self.max_steps < 0 else self.max_steps
        if num_batches is None or self.epochs < 0:
            return bound
        windows = (
            math.ceil(num_batches / self.accumulation_in(epoch)) for epoch in range(self.epochs)
        )
        return min(sum(windows), bound)

    def val_interval(self, num_batches: int | None) -> int | None:
        """Return the number of batches between validations; None for the end of an epoch.

        Raises:
            ConfigurationError: The interval is a share of an unknown number, or below one batch.
        """
        interval: int | float | None = self.val_check_interval
        if self.check_val_every_n_epoch is None and not isinstance(interval, int):
            raise ConfigurationError(
                "Trainer: check_val_every_n_epoch=None needs a number of batches",
                at="the argument `val_check_interval`",
                found=repr(interval),
                why="batches are counted through all epochs",
                hint="val_check_interval=1000",
            )
        if interval is None or (isinstance(interval, float) and interval == 1.0):
            return None
        if isinstance(interval, int):
            self._check_reached(interval, num_batches)
            return interval
        if num_batches is None:
            raise ConfigurationError(
                "Trainer: val_check_interval is a share of a loader without a length",
                at="the argument `val_check_interval`",
                found=repr(interval),
                hint="a number of batches",
            )
        found = math.floor(num_batches * interval)
        if found < 1:
            raise _no_interval(interval)
        return found

    def _check_reached(self, interval: int, num_batches: int | None) -> None:
        every = self.check_val_every_n_epoch
        if every is not None and num_batches is not None and interval > num_batches > 0:
            raise ConfigurationError(
                "Trainer: val_check_interval is longer than an epoch",
                at="the argument `val_check_interval`",
                found=f"{interval} batches, an epoch has {num_batches}",
                why="no validation would ever run",
                hint="check_val_every_n_epoch=None counts batches through all epochs",
            )


def checked_accumulation(given: Any, name: str) -> dict[int, int]:
    """Return the number of accumulated batches, by the epoch from which it applies.

    Raises:
        ConfigurationError: It is neither a number of batches nor a dict of them by epoch.
    """
    by_epoch = given if isinstance(given, dict) else {0: given}
    good = bool(by_epoch) and all(
        _is_whole(epoch, 0) and _is_whole(batches, 1) for epoch, batches in by_epoch.items()
    )
    if not good:
        raise ConfigurationError(
            "gradient accumulation is given in numbers of batches",
            at=f"the argument `{name}`",
            found=repr(given),
            why="an update needs at least one batch, and epochs are counted from 0",
            hint="4, or {0: 1, 10: 4} for 1 until epoch 9 and 4 from epoch 10 on",
        )
    return dict(by_epoch)


def _whole(name: str, value: Any, *, least: int) -> None:
    if not _is_whole(value, least):
        raise ConfigurationError(
            f"Trainer: {name} is not a whole number from {least} on",
            at=f"the argument `{name}`",
            found=repr(value),
            hint=f"{name}={max(least, 1)}",
        )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _no_interval(found: Any) -> ConfigurationError:
    return ConfigurationError(
        "Trainer: val_check_interval comes to less than one batch",
        at="the argument `val_check_interval`",
        found=repr(found),
        hint="a number of batches, a larger share, or no validation loader",
    )
