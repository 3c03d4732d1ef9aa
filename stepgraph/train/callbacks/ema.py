"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from stepgraph.errors import ConfigurationError
from stepgraph.train.hooks import Callback
from stepgraph.train.module import Module
from stepgraph.train.training import Training


class EMA(Callback):
    """Averages the weights, validates with the average, and leaves it in the module at the end.

    Before the first update there is no average, and validations use the weights themselves. Buffers
    are not averaged: the latest ones are used.

    Args:
        decay: Weight of the old average in an update.
        update_every_n_steps: Update at every n-th `global_step`, counted from the start.
        start_step: No update before this `global_step`.
        start_epoch: No update before this epoch, counted from 0.

    Attributes:
        averages: The averaged parameters by name; empty before the first update.
        n_averaged: Number of updates.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        update_every_n_steps: int = 1,
        start_step: int = 0,
        start_epoch: int = 0,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ConfigurationError(
                "EMA: decay is not between 0 and 1",
                at="the argument `decay`",
                found=repr(decay),
                hint="0.999",
            )
        if update_every_n_steps < 1:
            raise ConfigurationError(
                "EMA: update_every_n_steps is below 1",
                at="the argument `update_every_n_steps`",
                found=repr(update_every_n_steps),
                hint="1 updates after every step",
            )
        self.decay, self.every = decay, update_every_n_steps
        self.start_step, self.start_epoch = start_step, start_epoch
        self.averages: dict[str, Tensor] = {}
        self.n_averaged = 0
        self._own: dict[str, Tensor] | None = None
        self._latest_step = 0
        self._average = get_ema_multi_avg_fn(decay)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "averages": dict(self.averages),
            "n_averaged": self.n_averaged,
            "latest_step": self._latest_step,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = {name: value.clone() for name, value in state_dict["averages"].items()}
        self.n_averaged = state_dict["n_averaged"]
        self._latest_step = state_dict["latest_step"]

    @override
    def setup(self, trainer: Training, module: Module, stage: str) -> None:
        if stage == "fit":
            self.averages, self.n_averaged, self._latest_step = {}, 0, 0

    @override
    def on_fit_start(self, trainer: Training, module: Module) -> None:
        self.averages = {n: value.to(trainer.device) for n, value in self.averages.items()}

    @override
    def on_train_batch_end(
        self, trainer: Training, module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._latest_step or step < max(self.start_step, 1):
            return
        if trainer.current_epoch < self.start_epoch or step % self.every:
            return
        self._latest_step = step
        self._update(module)

    def _update(self, module: Module) -> None:
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        with torch.no_grad():
            if self.averages:
                self._average(
                    list(self.averages.values()),
                    [parameters[name] for name in self.averages],
                    self.n_averaged,
                )
            else:
                self.averages = {name: value.clone() for name, value in parameters.items()}
        self.n_averaged += 1

    @override
    def on_validation_start(self, trainer: Training, module: Module) -> None:
        if self.averages:
            self._own = {name: p.detach().clone() for name, p in module.named_parameters()}
            self._put(module, self.averages)

    @override
    def on_validation_end(self, trainer: Training, module: Module) -> None:
        self._restore_weights(module)

    @override
    def on_exception(self, trainer: Training, module: Module, exception: BaseException) -> None:
        self._restore_weights(module)

    @override
    def on_fit_end(self, trainer: Training, module: Module) -> None:
        """Copy the average into the module."""
        if self.averages:
            self._put(module, self.averages)

    def _restore_weights(self, module: Module) -> None:
        if self._own is not None:
            self._put(module, self._own)
            self._own = None

    def _put(self, module: Module, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(values[name])
