"""`Module`: a model together with its training step and its optimizers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from stepgraph.errors import ConfigurationError
from stepgraph.train.checkpoints.hyper_parameters import HyperParameters, chosen, init_arguments
from stepgraph.train.hooks import ModuleHooks
from stepgraph.train.logging.module_log import Logs
from stepgraph.train.optimization.clipping import checked_algorithm, checked_value
from stepgraph.train.optimization.updates import Updates
from stepgraph.train.training import Training


class Module(ModuleHooks, Logs, nn.Module):
    """A `torch.nn.Module` with its training step and its optimizers.

    Override `training_step` and `configure_optimizers`. In automatic optimization the trainer
    clears gradients, differentiates, clips, updates and schedules; with
    `self.automatic_optimization = False` the training step does that itself, and may be decorated
    with `stepgraph.compile`.

    Attributes:
        automatic_optimization: Whether the trainer performs the updates.

    Example:
        >>> import torch
        >>> class Regression(Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Linear(2, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return torch.nn.functional.mse_loss(self.model(x), y)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = True
        self._trainer: Training | None = None
        self._updates: Updates | None = None
        self._log_entries: list[Any] = []
        self._log_refused: str | None = "no trainer"
        self._device = torch.device("cpu")
        self._hparams = HyperParameters()
        self._toggled: tuple[Any, ...] = ()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch; in manual optimization also update.

        Called with those of `(batch, batch_idx, optimizer_idx)` that are in the signature.

        Returns:
            In automatic optimization the loss, a dict with the key `loss`, or None to skip the
            batch. In manual optimization a tensor, a dict or None.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no training_step",
            why="the trainer calls it for every batch",
            hint="def training_step(self, batch, batch_idx): return loss",
        )

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, usually with `self.log`; called in eval mode without gradients."""

    def configure_optimizers(self) -> Any:
        """Return the optimizers, and their schedules.

        One optimizer; `optimizer, scheduler`; a list of optimizers; a list of optimizers and a
        list of schedulers; a dict with `optimizer`, `lr_scheduler`, `monitor`, `frequency`; a list
        of such dicts; or None. A scheduler may be a dict with `scheduler`, `interval`,
        `frequency`, `monitor`, `strict`, `name`, `reduce_on_plateau`.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no configure_optimizers",
            why="the trainer updates with the optimizers that it returns",
            hint="def configure_optimizers(self): return torch.optim.Adam(self.parameters())",
        )

    @staticmethod
    def base() -> type[Module]:
        """Return the class whose hooks have the trainer's default behaviour."""
        return Module

    @property
    def trainer(self) -> Training:
        """The trainer to which this module was last attached.

        Raises:
            ConfigurationError: There is none yet.
        """
        if self._trainer is None:
            raise ConfigurationError(
                f"{type(self).__name__} is not attached to a Trainer",
                why="optimizers, schedules and progress belong to the trainer",
                hint="Trainer(...).fit(module, loader)",
            )
        return self._trainer

    @property
    def device(self) -> torch.device:
        """The device of the module's parameters."""
        return self._device

    @property
    def global_step(self) -> int:
        """Number of batches with an update."""
        return self.trainer.global_step

    @property
    def current_epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self.trainer.current_epoch

    @property
    def hparams(self) -> HyperParameters:
        """The arguments stored by `save_hyperparameters`."""
        return self._hparams

    def save_hyperparameters(self, *names: str, ignore: tuple[str, ...] | str = ()) -> None:
        """Store the arguments of `__init__` as `self.hparams`; call this in `__init__`.

        Args:
            *names: Names of the arguments to store; all by default.
            ignore: Names of arguments not to store.
        """
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        ignored = (ignore,) if isinstance(ignore, str) else ignore
        self._hparams.update(chosen(init_arguments(frame.f_back, self), names, ignored))

    def optimizers(self, use_wrappers: bool = True) -> Any:
        """Return the optimizer, or the list of them.

        Args:
            use_wrappers: False returns the user's own, whose `step()` has no precision, hooks and
                counts.
        """
        updates = self._require_updates("optimizers()")
        if not use_wrappers:
            found: list[Any] = list(updates.optimizers)
        else:
            found = list(updates.wrappers)
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """Return None, the scheduler, or the list of them."""
        found = self.trainer.schedulers
        if not found:
            return None
        return found[0] if len(found) == 1 else list(found)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate a loss in manual optimization: `loss.backward()`, with the loss scale.

        Args:
            loss: `[]`. Not divided by the number of accumulated batches.
            *args: Passed to `Tensor.backward`.
            **kwargs: Passed to `Tensor.backward`.

        Raises:
            ConfigurationError: Optimization is automatic.
        """
        if self.automatic_optimization:
            raise ConfigurationError(
                "manual_backward in automatic optimization",
                at=f"{type(self).__name__}.training_step",
                why="the trainer differentiates the loss that training_step returns",
                hint="self.automatic_optimization = False in __init__, or return the loss",
            )
        updates = self._require_updates("manual_backward()")
        updates.backward(loss, self.backward, args, kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate `loss`; may be overridden."""
        loss.backward(*args, **kwargs)

    def clip_gradients(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> Tensor | None:
        """Clip the gradients of an optimizer's parameters in place, unscaled first.

        Args:
            optimizer: One of `self.optimizers()`.
            gradient_clip_val: Largest norm, or largest absolute value. None: the trainer's.
            gradient_clip_algorithm: `"norm"` or `"value"`. None: the trainer's.

        Returns:
            The norm before clipping, `[]`, or None without a limit.
        """
        updates = self._require_updates("clip_gradients()")
        limit = checked_value(gradient_clip_val)
        if gradient_clip_val is None:
            limit = self.trainer.gradient_clip_val
        algorithm = gradient_clip_algorithm or self.trainer.gradient_clip_algorithm
        wrapper = updates.of(optimizer, "clip_gradients")
        return updates.clip(wrapper, limit, checked_algorithm(algorithm))

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip before an update of automatic optimization; may be overridden."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Perform one update of automatic optimization; may be overridden.

        Either as `(epoch, batch_idx, optimizer, optimizer_closure)`, or with `optimizer_idx` before
        the closure and `on_tpu`, `using_native_amp`, `using_lbfgs` after it. The closure runs
        `training_step`, clears gradients and differentiates. If it is not called, this optimizer
        does nothing in this batch.
        """
        closure = kwargs.get("optimizer_closure") or next((a for a in args if callable(a)), None)
        optimizer.step(closure=closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any) -> None:
        """Clear gradients in automatic optimization; may be overridden."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance a schedule in automatic optimization; may be overridden.

        Args:
            scheduler: The user's scheduler.
            metric: The monitored value for a plateau scheduler, else None.
        """
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def toggle_optimizer(self, optimizer: Any, optimizer_idx: int | None = None) -> None:
        """Let only one optimizer's parameters require gradients, until `untoggle_optimizer`.

        Toggles nest: an inner one is undone first.

        Args:
            optimizer: One of `self.optimizers()`.
            optimizer_idx: Ignored; older code passes it.
        """
        updates = self._require_updates("toggle_optimizer()")
        index = updates.of(optimizer, "toggle_optimizer")._index
        self._toggled = (index, updates.toggles.switch(index), self._toggled)

    def untoggle_optimizer(self, optimizer: Any = None) -> None:
        """Restore the flags that the latest `toggle_optimizer` changed.

        Args:
            optimizer: The same optimizer, or its index.

        Raises:
            ConfigurationError: Another optimizer, or none, was toggled last.
        """
        updates = self._require_updates("untoggle_optimizer()")
        index = optimizer
        if not isinstance(optimizer, int | None):
            index = updates.of(optimizer, "untoggle_optimizer")._index
        if not self._toggled or index not in (None, self._toggled[0]):
            raise ConfigurationError(
                "untoggle_optimizer without its toggle_optimizer",
                at="the argument `optimizer`",
                found=f"optimizer {self._toggled[0]} was toggled last" if self._toggled else "none",
                why="toggles are undone in the reverse of their order",
                hint="with optimizer.toggle_model(): ...",
            )
        _, before, self._toggled = self._toggled
        updates.toggles.restore(before)

    @contextlib.contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """Scope of `toggle_optimizer`; undone on exit, also after an exception."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer()

    def _require_updates(self, what: str) -> Updates:
        if self._updates is None:
            raise ConfigurationError(
                f"{type(self).__name__} is not attached to a Trainer",
                at=what,
                why="optimizers exist from on_fit_start on",
                hint="Trainer(...).fit(module, loader)",
            )
        return self._updates

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        first = next(iter(self.parameters()), None)
        if first is not None:
            self._device = first.device
        return result

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the trainer."""
        state = dict(self.__dict__)
        state.update(_trainer=None, _updates=None, _log_entries=[])
        return state
