"""Connect a module and a trainer, before the first batch."""

from __future__ import annotations

from typing import Any

from stepgraph.compiler import CompiledStep
from stepgraph.train.hooks import HookTable
from stepgraph.train.loop.batches import known_length, limited_length, with_process_share
from stepgraph.train.loop.checks import check_optimizers, undecorated
from stepgraph.train.loop.fit import FitLoop
from stepgraph.train.module import Module
from stepgraph.train.optimization.compose import composed_steps
from stepgraph.train.optimization.configuration import Configuration, configuration
from stepgraph.train.optimization.updates import Updates
from stepgraph.train.signatures import overridden
from stepgraph.train.training import Training


def prepare(trainer: Training, module: Module, loader: Any, validation: list[Any]) -> FitLoop:
    """Attach a module, configure its optimizers, compose its steps.

    Args:
        trainer: Its training state is set.
        module: Moved to the trainer's device and precision.
        loader: The training batches.
        validation: Loaders of validation batches.
    """
    _measure_epoch(trainer, loader, validation)
    attach(trainer, module, "fit")
    trainer.precision.convert(module)
    module.to(trainer.device)
    trainer.processes.start(module)
    trainer.hooks.call("setup", "fit")
    automatic = module.automatic_optimization
    module._log_refused = "configure_optimizers"
    found = configuration(
        module.configure_optimizers(),
        automatic=automatic,
        custom_step=overridden(module, Module, "lr_scheduler_step"),
    )
    _store_configuration(trainer, module, found)
    plain, decorated = undecorated(module), module.training_step
    composed = composed_steps(trainer, module, plain) if automatic else []
    compiled = [decorated] if isinstance(decorated, CompiledStep) and not automatic else []
    if not trainer.options.compile:
        compiled = []
    trainer.steps = tuple(compiled) or tuple(
        s.whole for s in composed if isinstance(s.whole, CompiledStep)
    )
    step = decorated if compiled else plain
    return FitLoop(trainer, module, trainer.train_loader, validation, step=step, automatic=composed)


def attach(trainer: Training, module: Module, stage: str) -> None:
    """Attach a module and the callbacks to their trainer.

    Args:
        trainer: Its tables of hooks are set.
        module: Must not log before its stage has begun.
        stage: `"fit"` or `"validate"`.
    """
    trainer.module, trainer.stage = module, stage
    module._trainer = trainer
    module._log_entries.clear()
    module._log_refused = f"{stage} has not begun"
    last = [callback for callback in trainer.callbacks if callback.runs_last]
    others = [callback for callback in trainer.callbacks if not callback.runs_last]
    trainer.hooks = HookTable(trainer, module, others)
    trainer.saving_hooks = HookTable(trainer, module, last, own=False)
    for hook in trainer.saving_hooks["setup"]:
        hook(stage)


def _measure_epoch(trainer: Training, loader: Any, validation: list[Any]) -> None:
    """Determine the length of an epoch and the interval of validations."""
    trainer.train_loader = with_process_share(loader, trainer.rank, trainer.world_size)
    trainer.validates = bool(validation)
    length, limit = known_length(trainer.train_loader), trainer.limit_train_batches
    trainer.num_training_batches = limited_length(length, limit, "limit_train_batches")
    trainer.val_interval = trainer.options.val_interval(trainer.num_training_batches)


def _store_configuration(trainer: Training, module: Module, found: Configuration) -> None:
    """Store the optimizers and schedules that `configure_optimizers` returned."""
    scaler = trainer.precision.scaler()
    check_optimizers(trainer, module, found, scaler is not None)
    updates = trainer.updates = Updates(
        found.optimizers, scaler=scaler, sync=trainer.processes.sync()
    )
    updates.use(trainer.hooks)
    trainer.lr_scheduler_configs, trainer.frequencies = found.schedulers, found.frequencies
    trainer.progress.optimizer_steps = [0] * len(found.optimizers)
    trainer.progress.close_window()
    module._updates = updates
    module._toggled = ()
    module.__dict__["_optimizers"] = updates.optimizers  # their names in step graphs
