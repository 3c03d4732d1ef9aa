"""Checks for contradictory arguments, before anything has changed."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import LBFGS

from stepgraph.compiler import CompiledStep
from stepgraph.errors import ConfigurationError
from stepgraph.train.module import Module
from stepgraph.train.optimization.configuration import Configuration
from stepgraph.train.signatures import takes
from stepgraph.train.training import Training


def undecorated(module: Module) -> Callable[..., Any]:
    """Return the module's `training_step` without `stepgraph.compile`, bound."""
    step: Any = module.training_step
    if type(step) is not CompiledStep:
        return step  # type: ignore[no-any-return]
    return types.MethodType(vars(step)["__wrapped__"], module)


def check_fit(trainer: Training, module: Any, loader: Any) -> None:
    """Refuse a fit whose arguments contradict each other or the module.

    Raises:
        ConfigurationError: They do; the message has the reason.
    """
    if not isinstance(module, Module):
        raise ConfigurationError(
            "Trainer.fit trains a stepgraph.Module",
            at="the argument `module`",
            found=type(module).__name__,
            hint="class MyModel(stepgraph.Module)",
        )
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ConfigurationError(
            "Trainer.fit takes batches to iterate over",
            at="the argument `train_dataloaders`",
            found=type(loader).__name__,
            hint="a DataLoader, or a list of batches",
        )
    indexed = takes(undecorated(module), "optimizer_idx")
    if not module.automatic_optimization:
        _check_manual(trainer, module, indexed)


def _check_manual(trainer: Training, module: Module, indexed: bool) -> None:
    if indexed:
        raise ConfigurationError(
            "training_step of manual optimization has no optimizer_idx",
            at=f"{type(module).__name__}.training_step",
            found="the parameter `optimizer_idx`",
            why="it is called once for a batch and itself decides which optimizers step",
            hint="opt1, opt2 = self.optimizers()",
        )
    if trainer.gradient_clip_val is not None:
        raise ConfigurationError(
            "Trainer(gradient_clip_val=...) does nothing in manual optimization",
            at="the argument `gradient_clip_val`",
            found=repr(trainer.gradient_clip_val),
            why="the step decides when gradients are complete",
            hint="self.clip_gradients(opt, gradient_clip_val=...) in training_step",
        )
    if any(batches != 1 for batches in trainer.options.accumulation.values()):
        raise ConfigurationError(
            "Trainer(accumulate_grad_batches=...) does nothing in manual optimization",
            at="the argument `accumulate_grad_batches`",
            found=repr(trainer.options.accumulate_grad_batches),
            why="the step decides when to update",
            hint="if (batch_idx + 1) % n == 0: opt.step() in training_step",
        )


def check_optimizers(trainer: Training, module: Module, found: Configuration, scales: bool) -> None:
    """Refuse optimizers that contradict the trainer's options or the training step.

    Raises:
        ConfigurationError: They do; the message has the reason.
    """
    lbfgs = [type(o).__name__ for o in found.optimizers if isinstance(o, LBFGS)]
    if lbfgs and scales:
        raise ConfigurationError(
            'LBFGS cannot be used with precision="16-mixed"',
            found=", ".join(lbfgs),
            why="it evaluates the loss several times in one update, the loss scale is for one",
            hint='precision="bf16-mixed"',
        )
    if not module.automatic_optimization:
        return
    accumulates = any(n != 1 for n in trainer.options.accumulation.values())
    if lbfgs and accumulates:
        raise ConfigurationError(
            "LBFGS cannot accumulate gradients",
            at="the argument `accumulate_grad_batches`",
            found=repr(trainer.options.accumulate_grad_batches),
            why="it evaluates the loss again, and only the last batch of a window is available",
            hint="accumulate_grad_batches=1 and larger batches",
        )
    if found.frequencies and accumulates:
        raise ConfigurationError(
            "optimizer frequencies and accumulate_grad_batches exclude each other",
            found=f"frequencies {found.frequencies}",
            why="a window would be shared between optimizers",
            hint="one of the two, or manual optimization",
        )
    _check_index(module, found)


def _check_index(module: Module, found: Configuration) -> None:
    if len(found.optimizers) > 1 and not takes(undecorated(module), "optimizer_idx"):
        raise ConfigurationError(
            "training_step is missing optimizer_idx",
            at=f"{type(module).__name__}.training_step",
            found=f"{len(found.optimizers)} optimizers in automatic optimization",
            why="it is called once for each optimizer, with the optimizer's index",
            hint="def training_step(self, batch, batch_idx, optimizer_idx), or manual optimization",
        )
