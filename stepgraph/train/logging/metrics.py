"""The metrics logged by `self.log`, reduced on the device without waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepgraph.errors import ConfigurationError

REDUCTIONS = ("mean", "sum", "min", "max")


class LogKey(NamedTuple):
    """A name and how it was logged."""

    name: str
    prog_bar: bool
    logger: bool
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: Any
    sync_dist: bool
    has_batch_size: bool


_KEYS: list[LogKey] = []
_NUMBERS: dict[LogKey, int] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def number_of(
    name: str,
    prog_bar: bool,
    logger: bool,
    on_step: bool | None,
    on_epoch: bool | None,
    reduce_fx: Any,
    sync_dist: bool,
    has_batch_size: bool,
) -> int:
    """Return a number that identifies a name and its options, constant in the process.

    A compiled step records the number, because it cannot record strings.
    """
    if not (reduce_fx in REDUCTIONS or callable(reduce_fx)):
        raise ConfigurationError(
            f"log({name!r}): unknown reduction",
            at="the argument `reduce_fx`",
            found=repr(reduce_fx),
            hint="one of " + ", ".join(map(repr, REDUCTIONS)) + ", or a function of a tensor",
        )
    key = LogKey(name, prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, has_batch_size)
    known = _NUMBERS.get(key)
    if known is None:
        known = _NUMBERS[key] = len(_KEYS)
        _KEYS.append(key)
    return known


class Mean:
    """A running mean, weighted by batch sizes; or a sum, a minimum, a maximum, or any function.

    Attributes:
        value: `[]` float64, the weighted sum, or the extreme; None before the first value.
        weight: Sum of the weights.
        name: The name of the result.
        kept: Every value, if the reduction is a function of the user's.
    """

    def __init__(self, reduce_fx: Any) -> None:
        self.reduce_fx = reduce_fx
        self.value: Tensor | None = None
        self.weight = 0.0
        self.name = ""
        self.kept: list[Tensor] = []

    def add(self, value: Tensor, weight: float) -> None:
        """Add one value, `[]`, without reading it."""
        value = value.detach().to(torch.float64)
        if callable(self.reduce_fx):
            self.kept.append(value)
        elif self.value is None:
            self.value = value * weight if self.reduce_fx == "mean" else value
        elif self.reduce_fx == "mean":
            self.value = self.value + value * weight
        elif self.reduce_fx == "sum":
            self.value = self.value + value
        else:
            extreme = torch.minimum if self.reduce_fx == "min" else torch.maximum
            self.value = extreme(self.value, value)
        self.weight += weight

    def result(self, reduce: Callable[[Tensor, str], Tensor] | None = None) -> Tensor:
        """Return the reduced value, `[]` float32.

        Args:
            reduce: Combines a tensor between processes: `"sum"`, `"min"` or `"max"`.
        """
        if callable(self.reduce_fx):
            return torch.as_tensor(self.reduce_fx(torch.stack(self.kept))).to(torch.float32)
        assert self.value is not None
        value, weight = self.value, torch.tensor(self.weight, dtype=torch.float64)
        if reduce is not None:
            operation = self.reduce_fx if self.reduce_fx in ("min", "max") else "sum"
            value, weight = reduce(value, operation), reduce(weight, "sum")
        if self.reduce_fx == "mean":
            value = value / weight
        return value.to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"value": self.value, "weight": self.weight, "kept": list(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.value, self.weight, self.kept = state["value"], state["weight"], list(state["kept"])


class Metrics:
    """All metrics of a training, in the three groups of Lightning.

    Attributes:
        callback: Metrics for callbacks and plateau schedulers.
        logged: Metrics for loggers.
        progress_bar: Metrics for the progress bar.
    """

    def __init__(self) -> None:
        self.callback: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.progress_bar: dict[str, Tensor] = {}
        self.step: dict[str, Tensor] = {}
        self._running: dict[str, dict[LogKey, Mean]] = {"train": {}, "validate": {}}
        self._restored: dict[str, dict[str, dict[str, Any]]] = {"train": {}, "validate": {}}

    def take(
        self,
        entries: list[Any],
        *,
        stage: str,
        per_batch: bool,
        batch_size: int,
        suffix: str = "",
    ) -> None:
        """Add the values that a module has logged since the last call, and empty its list.

        Args:
            entries: Number of a key, value, and for some keys a batch size, in turn. Emptied.
            stage: `"train"` or `"validate"`.
            per_batch: Whether the values were logged for a batch, not for an epoch.
            batch_size: Weight of values without a batch size.
            suffix: Appended to every name, to distinguish several validation loaders.
        """
        flow = iter(entries)
        for number in flow:
            key = _KEYS[number]
            if suffix:
                key = key._replace(name=key.name + suffix)
            value = next(flow)
            weight = next(flow) if key.has_batch_size else batch_size
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=torch.float32)
            self._add(key, value, float(weight), stage, per_batch)
        entries.clear()

    def _add(self, key: LogKey, value: Tensor, weight: float, stage: str, per_batch: bool) -> None:
        every_step = stage == "train" and per_batch
        on_step = every_step if key.on_step is None else key.on_step
        on_epoch = not (every_step and on_step) if key.on_epoch is None else key.on_epoch
        if on_step:
            self._show(f"{key.name}_step" if on_epoch else key.name, value, key, step=True)
            self.callback[key.name] = value
        if on_epoch:
            mean = self._running[stage].get(key)
            if mean is None:
                mean = self._running[stage][key] = self._new_mean(key, stage)
            mean.name = f"{key.name}_epoch" if on_step else key.name
            mean.add(value, weight)

    def _new_mean(self, key: LogKey, stage: str) -> Mean:
        """Return a new mean, with its state from a checkpoint if there is one."""
        mean = Mean(key.reduce_fx)
        restored = self._restored[stage].pop(_key_as_text(key), None)
        if restored is not None:
            mean.load_state_dict(restored)
        return mean

    def _show(self, name: str, value: Tensor, key: LogKey, *, step: bool = False) -> None:
        self.callback[name] = value
        if key.logger:
            self.logged[name] = value
            if step:
                self.step[name] = value
        if key.prog_bar:
            self.progress_bar[name] = value

    def end_epoch(
        self, stage: str, reduce: Callable[[Tensor, str], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Reduce the values of an epoch; return the results for loggers."""
        for_loggers: dict[str, Tensor] = {}
        for key, mean in self._running[stage].items():
            value = mean.result(reduce if key.sync_dist else None)
            self._show(mean.name, value, key)
            self.callback[key.name] = value
            if key.logger:
                for_loggers[mean.name] = value
        self._running[stage] = {}
        self._restored[stage] = {}
        return for_loggers

    def take_steps(self) -> dict[str, Tensor]:
        """Return the step values since the last call."""
        taken, self.step = self.step, {}
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the values and the running means, for a checkpoint."""
        return {
            "callback": dict(self.callback),
            "logged": dict(self.logged),
            "progress_bar": dict(self.progress_bar),
            "running": {
                stage: {
                    **self._restored[stage],
                    **{_key_as_text(key): mean.state_dict() for key, mean in running.items()},
                }
                for stage, running in self._running.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.callback = dict(state["callback"])
        self.logged = dict(state["logged"])
        self.progress_bar = dict(state["progress_bar"])
        self._restored = {stage: dict(means) for stage, means in state["running"].items()}


def _key_as_text(key: LogKey) -> str:
    """Return a key as text, so that a checkpoint can contain it for any reduction."""
    reduction = getattr(key.reduce_fx, "__qualname__", key.reduce_fx)
    return repr(tuple(key._replace(reduce_fx=reduction)))


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    """Return metrics as Python floats: one copy from each device."""
    by_device: dict[torch.device, list[str]] = {}
    for name, value in values.items():
        by_device.setdefault(value.device, []).append(name)
    result = dict.fromkeys(values, 0.0)
    for names in by_device.values():
        stacked = torch.stack([values[name].reshape(()).to(torch.float64) for name in names])
        result.update(zip(names, stacked.tolist(), strict=True))
    return result


def batch_size_of(batch: Any) -> int:
    """Return the first dimension of the first tensor in a batch, or 1."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for item in batch:
            if isinstance(item, Tensor | list | tuple | dict):
                return batch_size_of(item)
    return 1
