"""Convert the result of `configure_optimizers` to one form."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from stepgraph.errors import ConfigurationError
from stepgraph.train.optimization.optimizers import unwrapped

_SCHEDULER_KEYS = (
    "scheduler",
    "interval",
    "frequency",
    "monitor",
    "strict",
    "name",
    "reduce_on_plateau",
)
_OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor", "frequency")
_FORMS = (
    "optimizer; optimizer, scheduler; [optimizers]; [optimizers], [schedulers]; "
    '{"optimizer": ..., "lr_scheduler": ..., "monitor": ..., "frequency": ...}; a list of such '
    "dicts; None"
)


@dataclass
class SchedulerConfig:
    """A schedule and when it advances.

    Attributes:
        scheduler: The user's scheduler.
        interval: `"epoch"`, or `"step"` for steps of its optimizer.
        frequency: Advance at every n-th epoch or step.
        monitor: Name of the metric for a plateau scheduler.
        strict: Whether a missing metric is an error; else that advance is skipped with a warning.
        name: Its name in a `LearningRateMonitor`.
        reduce_on_plateau: Whether `step` takes the metric.
        optimizer_index: Index of its optimizer.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None
    reduce_on_plateau: bool = False
    optimizer_index: int = 0


@dataclass
class Configuration:
    """The optimizers and schedules of a training.

    Attributes:
        optimizers: The user's optimizers.
        schedulers: Their schedules.
        frequencies: For each optimizer, the number of consecutive batches in which it is the active
            one; empty if all are active in every batch.
    """

    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[SchedulerConfig] = field(default_factory=list)
    frequencies: list[int] = field(default_factory=list)


def configuration(returned: Any, *, automatic: bool, custom_step: bool = False) -> Configuration:
    """Return the optimizers and schedules of a result of `configure_optimizers`.

    Args:
        returned: The result.
        automatic: Whether the trainer advances the schedules.
        custom_step: Whether `lr_scheduler_step` is overridden, so that any object may be a
            scheduler.

    Raises:
        ConfigurationError: The result has none of the accepted forms, or contradicts itself.
    """
    if returned is None:
        warnings.warn(
            "configure_optimizers returned None: this fit runs without an optimizer", stacklevel=2
        )
        return Configuration()
    found = _parse(returned)
    if automatic and not found.optimizers:
        raise _refused(returned, "there is nothing to optimize with in automatic optimization")
    _check_optimizers(found, automatic=automatic)
    for config in found.schedulers:
        _check_scheduler(config, found, automatic=automatic, custom_step=custom_step)
    return found


def _parse(returned: Any) -> Configuration:
    if isinstance(returned, Optimizer):
        return Configuration([unwrapped(returned)])
    if isinstance(returned, dict):
        return _from_dicts([returned])
    if not isinstance(returned, list | tuple):
        raise _refused(returned)
    items = list(returned)
    if items and all(isinstance(item, dict) for item in items):
        return _from_dicts(items)
    if all(isinstance(item, Optimizer) for item in items):
        return Configuration([unwrapped(item) for item in items])
    if len(items) != 2:
        raise _refused(returned)
    optimizers, schedulers = items
    if isinstance(optimizers, Optimizer):
        optimizers = [optimizers]
    if not isinstance(optimizers, list | tuple) or not all(
        isinstance(item, Optimizer) for item in optimizers
    ):
        raise _refused(returned)
    return Configuration([unwrapped(item) for item in optimizers], _schedulers(schedulers))


def _from_dicts(dicts: list[dict[str, Any]]) -> Configuration:
    found = Configuration()
    given: list[Any] = []
    for one in dicts:
        unknown = [key for key in one if key not in _OPTIMIZER_KEYS]
        if unknown or not isinstance(one.get("optimizer"), Optimizer):
            raise ConfigurationError(
                "configure_optimizers: a dict describes one optimizer",
                found=f"unknown keys {unknown}" if unknown else f"keys {list(one)}",
                why="an unknown key would be ignored, and `optimizer` is required",
                hint="the keys are " + ", ".join(map(repr, _OPTIMIZER_KEYS)),
            )
        found.optimizers.append(unwrapped(one["optimizer"]))
        given.append(one.get("frequency"))
        found.schedulers += _schedulers(one.get("lr_scheduler"), one.get("monitor"))
    if any(frequency is not None for frequency in given):
        if not all(_is_count(frequency) for frequency in given):
            raise ConfigurationError(
                "configure_optimizers: every optimizer needs a frequency, or none",
                found=f"frequencies {given}",
                why="a frequency is the number of consecutive batches in which it is active",
                hint='"frequency": an int of at least 1, for every optimizer',
            )
        found.frequencies = [int(frequency) for frequency in given]
    return found


def _schedulers(given: Any, monitor: str | None = None) -> list[SchedulerConfig]:
    if given is None:
        return []
    several = given if isinstance(given, list | tuple) else [given]
    return [_scheduler(one, monitor) for one in several]


def _scheduler(given: Any, monitor: str | None) -> SchedulerConfig:
    if not isinstance(given, dict):
        given = {"scheduler": given}
    unknown = [key for key in given if key not in _SCHEDULER_KEYS]
    if unknown or "scheduler" not in given:
        raise ConfigurationError(
            "configure_optimizers: a scheduler dict describes one scheduler",
            found=f"unknown keys {unknown}" if unknown else f"keys {list(given)}",
            why="an unknown key would be ignored, and `scheduler` is required",
            hint="the keys are " + ", ".join(map(repr, _SCHEDULER_KEYS)),
        )
    config = SchedulerConfig(**given)
    if "reduce_on_plateau" not in given:
        config.reduce_on_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
    config.monitor = config.monitor or monitor
    return config


def _check_optimizers(found: Configuration, *, automatic: bool) -> None:
    if len({id(optimizer) for optimizer in found.optimizers}) < len(found.optimizers):
        raise ConfigurationError(
            "configure_optimizers returned the same optimizer twice",
            found=", ".join(type(o).__name__ for o in found.optimizers),
            why="it would step twice in every batch",
            hint="two optimizers, or one entry",
        )
    if found.frequencies and not automatic:
        raise ConfigurationError(
            "configure_optimizers: frequencies need automatic optimization",
            found=f"frequencies {found.frequencies}",
            why="in manual optimization the step itself decides which optimizer steps when",
            hint='remove "frequency"',
        )


def _check_scheduler(
    config: SchedulerConfig, found: Configuration, *, automatic: bool, custom_step: bool
) -> None:
    scheduler, kind = config.scheduler, type(config.scheduler).__name__
    if config.interval not in ("step", "epoch"):
        raise ConfigurationError(
            f"configure_optimizers: {kind} has an unknown interval",
            found=repr(config.interval),
            hint='"interval": "step" or "epoch"',
        )
    if not _is_count(config.frequency):
        raise ConfigurationError(
            f"configure_optimizers: the frequency of {kind} is not a whole number from 1 on",
            found=repr(config.frequency),
            hint='"frequency": 1 advances it every time',
        )
    needed = ("state_dict", "load_state_dict") if custom_step else _NEEDED
    missing = [name for name in needed if not callable(getattr(scheduler, name, None))]
    if missing:
        raise ConfigurationError(
            f"configure_optimizers: {kind} is not a scheduler",
            found=f"no {', '.join(missing)}",
            why="a scheduler is advanced, and is part of every checkpoint",
            hint="a torch scheduler; or override lr_scheduler_step for one without step()",
        )
    config.optimizer_index = _index_of_optimizer(config, found)
    if automatic:
        _check_automatic(config, kind)


_NEEDED = ("step", "state_dict", "load_state_dict")


def _index_of_optimizer(config: SchedulerConfig, found: Configuration) -> int:
    owner = unwrapped(getattr(config.scheduler, "optimizer", None))
    for index, optimizer in enumerate(found.optimizers):
        if optimizer is owner or (owner is None and len(found.optimizers) == 1):
            return index
    if owner is None and not isinstance(config.scheduler, LRScheduler):
        return 0
    raise ConfigurationError(
        "configure_optimizers: a scheduler belongs to an optimizer that was not returned",
        found=f"{type(config.scheduler).__name__} of {type(owner).__name__}",
        why="it would schedule something that never steps",
        hint="return its optimizer too",
    )


def _check_automatic(config: SchedulerConfig, kind: str) -> None:
    if config.reduce_on_plateau and not config.monitor:
        raise ConfigurationError(
            f"configure_optimizers: {kind} needs a metric to monitor",
            found="no `monitor`",
            why="it is advanced with the metric's latest value",
            hint='{"scheduler": ..., "monitor": "val_loss"} with a name passed to self.log',
        )
    if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch":
        warnings.warn(
            'a OneCycleLR advances every epoch; it is designed for "interval": "step"',
            RuntimeWarning,
            stacklevel=2,
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _refused(returned: Any, why: str | None = None) -> ConfigurationError:
    return ConfigurationError(
        "configure_optimizers returned something other than optimizers",
        found=_shape(returned),
        why=why,
        hint=_FORMS,
    )


def _shape(value: Any) -> str:
    """Describe nested lists by the types in them."""
    if isinstance(value, list | tuple):
        items = ", ".join(_shape(item) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    return type(value).__name__
