"""`Trainer`: runs the loop around the steps of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stepgraph.compiler import CompiledStep
from stepgraph.errors import ConfigurationError
from stepgraph.train.callbacks.standard import standard_callbacks
from stepgraph.train.checkpoints import files, training_state
from stepgraph.train.checkpoints.randomness import seed_everything
from stepgraph.train.hooks import Callback
from stepgraph.train.logging.loggers import loggers_of
from stepgraph.train.logging.metrics import Metrics, numbers
from stepgraph.train.loop.batches import Epoch
from stepgraph.train.loop.checks import check_fit
from stepgraph.train.loop.fit import FitLoop
from stepgraph.train.loop.preparation import attach, prepare
from stepgraph.train.loop.processes import Processes
from stepgraph.train.loop.progress import Progress
from stepgraph.train.loop.validation import loaders_of, validate
from stepgraph.train.module import Module
from stepgraph.train.optimization.configuration import SchedulerConfig
from stepgraph.train.optimization.updates import Updates
from stepgraph.train.options import Options
from stepgraph.train.training import Training

_MIDWAY = (
    "a checkpoint in the middle of a training step could not be resumed exactly: part of the "
    "batch is already done"
)


class Trainer(Training):
    """Runs the loop around a module's training step.

    In automatic optimization the trainer composes a step from the module's hooks and compiles it
    with `stepgraph.compile`; in manual optimization a decorated `training_step` is compiled.

    Args:
        max_epochs: Largest number of epochs; 1000 if `max_steps` is not given either, -1 for no
            limit.
        min_epochs: Number of epochs to train before `should_stop` has an effect.
        max_steps: Stop at this `global_step`; -1 for no limit.
        accumulate_grad_batches: Number of batches for one update; or a dict of such numbers, by
            the epoch from which they apply.
        gradient_clip_val: Largest gradient norm or value; None for no clipping.
        gradient_clip_algorithm: `"norm"` or `"value"`.
        precision: `"32-true"`, `"bf16-mixed"`, `"16-mixed"`, `"bf16-true"` or `"64-true"`.
        limit_train_batches: Batches of an epoch: a number, or a share.
        limit_val_batches: Batches of a validation: a number, or a share.
        val_check_interval: Batches between validations: a number, or a share of an epoch.
        check_val_every_n_epoch: Validate in every n-th epoch. None counts the batches of
            `val_check_interval` through all epochs.
        callbacks: The callbacks, called in the hooks of the training.
        logger: A logger, a list of loggers, True for a `CSVLogger`, False for none.
        enable_progress_bar: Show a progress bar in a terminal.
        enable_checkpointing: Save after every epoch if no `ModelCheckpoint` is given.
        default_root_dir: Folder of logs and checkpoints.
        log_every_n_steps: Number of batches between reads of metrics from the device.
        accelerator: `"auto"`, `"cpu"` or `"cuda"`.
        devices: 1 or `"auto"`; several devices are several processes, started with `torchrun`.
        strategy: `"auto"` or `"ddp"`.
        detect_anomaly: Let autograd check for NaN; steps then run eagerly.
        seed: Seed of torch, Python and NumPy, set when `fit` begins.
        compile: False runs everything as plain Python.

    Attributes:
        is_last_batch: Whether the present batch is the last of its epoch.
        current_epoch: Number of the epoch, from 0.
        global_step: Number of batches in which at least one optimizer stepped.
        should_stop: Set it to end the training after the present batch.

    Raises:
        ConfigurationError: An argument is invalid.

    Example:
        >>> import torch
        >>> from stepgraph import Module, Trainer
        >>> class Line(Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Linear(1, 1)
        ...     def training_step(self, batch):
        ...         return (self.model(batch) - batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> quiet = {"logger": False, "enable_checkpointing": False, "compile": False}
        >>> trainer = Trainer(max_epochs=2, **quiet)
        >>> trainer.fit(Line(), [torch.ones(4, 1)] * 3)
        >>> trainer.global_step
        6
    """

    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        min_epochs: int = 0,
        max_steps: int = -1,
        accumulate_grad_batches: int | dict[int, int] = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        precision: str | int = "32-true",
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        callbacks: Callback | list[Callback] | None = None,
        logger: Any = True,
        enable_progress_bar: bool = True,
        enable_checkpointing: bool = True,
        default_root_dir: str | Path = ".",
        log_every_n_steps: int = 50,
        accelerator: str = "auto",
        devices: int | str = "auto",
        strategy: str = "auto",
        detect_anomaly: bool = False,
        seed: int | None = None,
        compile: bool = True,
    ) -> None:
        options = Options(
            max_epochs=max_epochs,
            min_epochs=min_epochs,
            max_steps=max_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            precision=precision,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            log_every_n_steps=log_every_n_steps,
            detect_anomaly=detect_anomaly,
            seed=seed,
            compile=compile,
        )
        processes = Processes.from_environment(accelerator, devices, strategy)
        is_first = processes.rank == 0
        folder = Path(default_root_dir)
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        super().__init__(
            options,
            processes,
            default_root_dir=folder,
            loggers=loggers_of(logger, folder) if is_first else [],
            callbacks=standard_callbacks(
                given,
                progress_bar=enable_progress_bar and is_first,
                checkpointing=enable_checkpointing,
                accumulation=options.accumulation,
            ),
        )

    def _forget(self) -> None:
        """Return to the state before the first fit."""
        self.module: Module | None = None
        self.progress, self.metrics = Progress(), Metrics()
        self.updates = Updates([])
        self.lr_scheduler_configs: list[SchedulerConfig] = []
        self.frequencies: list[int] = []
        self.train_loader: Any = None
        self.epoch_batches: Epoch | None = None
        self.num_training_batches: int | None = None
        self.val_interval: int | None = None
        self.validates = False
        self.loop: FitLoop | None = None
        self.steps: tuple[CompiledStep, ...] = ()
        self.is_last_batch = self.should_stop = self.in_training_step = False
        self.global_step = 0
        self.stage: str | None = None

    def fit(
        self,
        module: Module,
        train_dataloaders: Any,
        val_dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Train a module.

        Args:
            module: Trained in place; stays attached to this trainer.
            train_dataloaders: A loader, or any iterable of batches.
            val_dataloaders: A loader of validation batches, or a list of `DataLoader`s.
            ckpt_path: Resume from this checkpoint.

        Raises:
            ConfigurationError: Arguments contradict each other; nothing has changed.
            CheckpointError: The checkpoint cannot be used.
        """
        check_fit(self, module, train_dataloaders)
        saved = None if ckpt_path is None else files.read(ckpt_path)
        self._forget()
        if self.options.seed is not None:
            seed_everything(self.options.seed)
        try:
            loop = prepare(self, module, train_dataloaders, loaders_of(val_dataloaders))
            if saved is not None:
                loop.resumed = training_state.restore(self, module, saved)
                self.global_step = self.progress.global_step
            self.loop = loop
            self._run(module, loop)
        except BaseException as error:
            if self.stage is not None:
                self.hooks.call("on_exception", error)
            raise
        finally:
            module._log_refused = "outside of a fit"
            module._log_entries.clear()
            if self.epoch_batches is not None:
                self.epoch_batches.close()
            self.stage = None

    def _run(self, module: Module, loop: FitLoop) -> None:
        module.train()
        self.hooks.call("on_fit_start")
        for logger in self.loggers:
            logger.log_hyperparams(module.hparams)
        module._log_refused = None
        with torch.autograd.set_detect_anomaly(self.options.detect_anomaly):
            loop.run()
        module._log_refused = "on_fit_end"
        self.hooks.call("on_fit_end")
        self._save_at_end()
        for logger in self.loggers:
            logger.finalize()
        self.hooks.call("teardown", "fit")

    def _save_at_end(self) -> None:
        for hook in self.saving_hooks["on_fit_end"]:
            hook()

    def validate(self, module: Module, dataloaders: Any) -> list[dict[str, float]]:
        """Evaluate a module; return the metrics that it logged, for all loaders together.

        Args:
            module: The module; its mode and gradients do not change.
            dataloaders: A loader of batches, or a list of `DataLoader`s.
        """
        attach(self, module, "validate")
        module.to(self.device)
        module._log_refused = None
        try:
            self.hooks.call("setup", "validate")
            values = validate(self, module, loaders_of(dataloaders))
            self.write(values)
            self.hooks.call("teardown", "validate")
        finally:
            module._log_refused = "outside of a fit"
            self.stage = None
        return [numbers(values)]

    def save_checkpoint(self, filepath: str | Path) -> None:
        """Write the state needed to resume to one file, atomically.

        Raises:
            ConfigurationError: There is no training, or it is in the middle of a step.
            CheckpointError: The state contains a value that could not be loaded.
        """
        if self.module is None or self.in_training_step:
            raise ConfigurationError(
                "save_checkpoint at a point from which training could not be resumed",
                at="training_step" if self.in_training_step else "before fit",
                why=_MIDWAY if self.in_training_step else "there is nothing to save yet",
                hint="call it in on_train_batch_end, or after fit",
            )
        state = training_state.collect(self, self.module)
        if self.rank == 0:
            files.write(state, filepath)
        self.processes.wait()
