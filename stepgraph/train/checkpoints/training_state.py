"""The state of a training, for checkpoints: collect and restore it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from stepgraph.errors import CheckpointError, ConfigurationError
from stepgraph.train.checkpoints import files
from stepgraph.train.loop.batches import loading_state
from stepgraph.train.loop.progress import EPOCH_START
from stepgraph.train.module import Module
from stepgraph.train.training import Training


def collect(trainer: Training, module: Module) -> dict[str, Any]:
    """Return the state of a training; its tensors are not copied."""
    updates, progress = trainer.updates, trainer.progress
    loader_state = trainer.epoch_batches.start if trainer.epoch_batches is not None else {}
    own = {
        "random": {"now": loading_state(trainer.train_loader), "epoch_start": loader_state},
        "gradients": _gradients(trainer, module),
        "buffers": _detached(module.named_buffers()) if trainer.world_size > 1 else {},
    }
    state: dict[str, Any] = {
        "stepgraph_format": files.FORMAT,
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        "state_dict": module.state_dict(),
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "optimizer_types": [type(o).__name__ for o in updates.optimizers],
        "optimizer_states": [files.plain(o.state_dict()) for o in updates.optimizers],
        "scheduler_types": [type(s).__name__ for s in trainer.schedulers],
        "lr_schedulers": [files.plain(s.state_dict()) for s in trainer.schedulers],
        "scaler": None if updates.scaler is None else dict(updates.scaler.state_dict()),
        "progress": progress.state_dict(),
        "metrics": trainer.metrics.state_dict(),
        "callbacks": {
            c.state_key: files.plain(s) for c in trainer.callbacks if (s := c.state_dict())
        },
        "processes": _of_all_processes(own, trainer.world_size),
        "hyper_parameters": _plain_values(module.hparams),
    }
    trainer.hooks.call("on_save_checkpoint", state)
    return state


def restore(trainer: Training, module: Module, state: dict[str, Any]) -> dict[str, Any] | None:
    """Restore the state of a training from a checkpoint.

    Everything is checked first: if a part does not match, nothing has changed.

    Returns:
        The random states that the loop restores before its first batch.

    Raises:
        CheckpointError: The checkpoint belongs to another training.
        ConfigurationError: The trainer would end before the checkpoint.
    """
    _check_not_over(trainer, state["progress"])
    for problem in _mismatches(trainer, module, state):
        raise CheckpointError(
            "a checkpoint belongs to another training",
            at=problem[0],
            found=problem[1],
            why="the resumed training would not continue the saved one",
            hint="the module, optimizers and callbacks the checkpoint was written with",
        )
    trainer.hooks.call("on_load_checkpoint", state)
    module.load_state_dict(state["state_dict"])
    parameters = dict(module.named_parameters())
    for name, flag in state["requires_grad"].items():
        parameters[name].requires_grad_(flag)
    updates = trainer.updates
    for optimizer, saved in zip(updates.optimizers, state["optimizer_states"], strict=True):
        optimizer.load_state_dict(saved)
    for scheduler, saved in zip(trainer.schedulers, state["lr_schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    if updates.scaler is not None:
        updates.scaler.load_state_dict(state["scaler"])
    own = state["processes"][trainer.rank]
    for name, gradient in own["gradients"].items():
        parameters[name].grad = gradient.to(parameters[name].device)
    module.load_state_dict(own["buffers"], strict=False)
    trainer.progress.load_state_dict(state["progress"])
    trainer.metrics.load_state_dict(state["metrics"])
    for callback in trainer.callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    random: dict[str, Any] = own["random"]
    return random


def _check_not_over(trainer: Training, progress: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint that is beyond the end of this training."""
    epochs = progress["epoch"] + (progress["phase"] != EPOCH_START)
    steps = progress["global_step"]
    for name, limit, reached in (
        ("max_epochs", trainer.max_epochs, epochs),
        ("max_steps", trainer.max_steps, steps),
    ):
        if 0 <= limit < reached:
            raise ConfigurationError(
                f"Trainer: {name} lies before the checkpoint",
                at=f"the argument `{name}`",
                found=f"{limit}; the checkpoint has begun epoch {epochs} and made {steps} updates",
                why="nothing would be trained",
                hint=f"a larger {name}: it counts from the first start, not from the checkpoint",
            )


def _gradients(trainer: Training, module: Module) -> dict[str, Tensor]:
    """Return the gradients to which the next batches will add."""
    open_window = trainer.progress.in_window > 0
    if module.automatic_optimization and not open_window:
        return {}
    return _detached((n, p.grad) for n, p in module.named_parameters() if p.grad is not None)


def _detached(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in named}


def _of_all_processes(value: Any, world_size: int) -> list[Any]:
    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    on_cpu = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, value)
    dist.all_gather_object(gathered, on_cpu)
    return gathered


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that a checkpoint can contain; resuming does not need them."""
    kinds = (type(None), bool, int, float, str, Tensor)
    return {name: value for name, value in values.items() if isinstance(value, kinds)}


def _mismatches(
    trainer: Training, module: Module, state: dict[str, Any]
) -> Sequence[tuple[str, str]]:
    """Return the differences between the checkpoint and the training, with their locations."""
    found: list[tuple[str, str]] = []
    own = module.state_dict()
    saved = state["state_dict"]
    for name in [*own, *saved]:
        ours, theirs = _shape(own.get(name)), _shape(saved.get(name))
        if ours != theirs:
            found.append((f"the module's {name!r}", f"{theirs} saved, {ours} here"))
    here = [type(o).__name__ for o in trainer.updates.optimizers]
    _compare(found, "optimizers", state["optimizer_types"], here)
    if not found:
        for index, optimizer in enumerate(trainer.updates.optimizers):
            groups = [len(g["params"]) for g in state["optimizer_states"][index]["param_groups"]]
            sizes = [len(g["params"]) for g in optimizer.param_groups]
            _compare(found, f"parameters in the groups of optimizer {index}", groups, sizes)
    schedulers = [type(s).__name__ for s in trainer.schedulers]
    _compare(found, "schedulers", state["scheduler_types"], schedulers)
    scales = trainer.updates.scaler is not None
    _compare(found, "loss scale", state["scaler"] is not None, scales)
    _compare(found, "processes", len(state["processes"]), trainer.world_size)
    stateful = [c.state_key for c in trainer.callbacks if c.state_dict()]
    _compare(found, "callbacks with a state", sorted(state["callbacks"]), sorted(stateful))
    return found


def _compare(found: list[tuple[str, str]], what: str, saved: Any, here: Any) -> None:
    if saved != here:
        found.append((what, f"{saved} saved, {here} here"))


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"shape {tuple(value.shape)}"
    return "nothing" if value is None else "a value"
