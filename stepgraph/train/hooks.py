"""The hooks of a training, in the order in which they are called.

A module's hooks have the arguments listed here; a callback's have the trainer and the module before
them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from stepgraph.train.signatures import overridden

NAMES = (
    "setup",
    "teardown",
    "on_fit_start",
    "on_fit_end",
    "on_train_start",
    "on_train_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_validation_start",
    "on_validation_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_exception",
    "on_save_checkpoint",
    "on_load_checkpoint",
)


class ModuleHooks:
    """Hooks that a module may override; by default they do nothing."""

    def setup(self, stage: str) -> None:
        """Called first; `stage` is `"fit"` or `"validate"`."""

    def teardown(self, stage: str) -> None:
        """Called last."""

    def on_fit_start(self) -> None:
        """Called when optimizers exist and a checkpoint, if any, is loaded."""

    def on_fit_end(self) -> None:
        """Called when training is over."""

    def on_train_start(self) -> None:
        """Called before the first epoch."""

    def on_train_end(self) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Called before the first batch of an epoch."""

    def on_train_epoch_end(self) -> None:
        """Called after the last batch of an epoch and its validation."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before a batch. Returning -1 skips the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after a batch, with the detached outputs of `training_step`."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called before gradients are cleared in automatic optimization."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Called with the loss that is about to be differentiated."""

    def on_after_backward(self) -> None:
        """Called when gradients are there, still scaled under `"16-mixed"`."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called before an update, with unscaled and unclipped gradients."""

    def on_validation_start(self) -> None:
        """Called before a validation."""

    def on_validation_end(self) -> None:
        """Called after a validation, with its metrics computed."""

    def on_validation_epoch_start(self) -> None:
        """Called before the first batch of a validation."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last batch of a validation; may log."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Called before a batch of a validation."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after a batch of a validation."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when a training is interrupted by an exception."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called with a complete checkpoint before it is written; may add to it."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called with a checkpoint before anything is restored from it."""


class Callback:
    """User code with hooks that a trainer calls; each hook receives the trainer and the module.

    The `state_dict` of a callback is part of every checkpoint, under its `state_key`.

    Attributes:
        runs_last: Whether it runs after all other callbacks, because it saves their changes.
    """

    runs_last = False

    @property
    def state_key(self) -> str:
        """Name of its state in a checkpoint; unique among the callbacks of a trainer."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return its state for a checkpoint: tensors, numbers, strings and containers."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Called first; `stage` is `"fit"` or `"validate"`."""

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        """Called last."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Called when optimizers exist and a checkpoint, if any, is loaded."""

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Called when training is over."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Called before the first epoch."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Called before the first batch of an epoch."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Called after the last batch of an epoch and its validation."""

    def on_train_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int
    ) -> int | None:
        """Called before a batch. Returning -1 skips the rest of the epoch."""

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after a batch, with the detached outputs of `training_step`."""

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Optimizer) -> None:
        """Called before gradients are cleared in automatic optimization."""

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        """Called with the loss that is about to be differentiated."""

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        """Called when gradients are there, still scaled under `"16-mixed"`."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Optimizer) -> None:
        """Called before an update, with unscaled and unclipped gradients."""

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Called before a validation."""

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Called after a validation, with its metrics computed."""

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        """Called before the first batch of a validation."""

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Called after the last batch of a validation; may log."""

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called before a batch of a validation."""

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after a batch of a validation."""

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Called when a training is interrupted by an exception."""

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Called with a complete checkpoint before it is written; may add to it."""

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Called with a checkpoint before anything is restored from it."""


class HookTable(dict[str, tuple[Callable[..., Any], ...]]):
    """The functions to call for every hook: the callbacks' first, then the module's.

    Only overridden hooks are in it, so that other hooks cost nothing and are not traced in a
    compiled step.
    """

    def __init__(
        self, trainer: Any, module: Any, callbacks: list[Callback], *, own: bool = True
    ) -> None:
        super().__init__()
        for name in NAMES:
            calls: list[Callable[..., Any]] = [
                functools.partial(getattr(callback, name), trainer, module)
                for callback in callbacks
                if overridden(callback, Callback, name)
            ]
            if own and overridden(module, ModuleHooks, name):
                calls.append(getattr(module, name))
            self[name] = tuple(calls)

    def call(self, name: str, *args: Any) -> list[Any]:
        """Call all functions of a hook; return their results."""
        return [hook(*args) for hook in self[name]]
