"""Validation: in eval mode, without gradients; modes and gradients are restored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stepgraph.train.logging.metrics import batch_size_of
from stepgraph.train.loop.batches import Epoch, known_length, limited_length, moved
from stepgraph.train.module import Module
from stepgraph.train.signatures import step_arguments
from stepgraph.train.training import Training


def loaders_of(given: Any) -> list[Any]:
    """Return the loaders: each element of a list of `DataLoader`s, or any other iterable as one."""
    if given is None:
        return []
    if isinstance(given, list | tuple) and given and all(isinstance(x, DataLoader) for x in given):
        return list(given)
    return [given]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Scope of eval mode without gradients; the mode of every submodule is restored."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def validate(trainer: Training, module: Module, loaders: Sequence[Any]) -> dict[str, Tensor]:
    """Run a validation; return the metrics for loggers.

    Accumulated gradients are kept.
    """
    hooks, metrics = trainer.hooks, trainer.metrics
    hooks.call("on_validation_start")
    with evaluating(module):
        hooks.call("on_validation_epoch_start")
        for index, loader in enumerate(loaders):
            suffix = f"/dataloader_idx_{index}" if len(loaders) > 1 else ""
            _validate_loader(trainer, module, loader, index, suffix)
        hooks.call("on_validation_epoch_end")
        metrics.take(module._log_entries, stage="validate", per_batch=False, batch_size=1)
    for_loggers = metrics.end_epoch("validate", trainer.reduce_metric)
    hooks.call("on_validation_end")
    return for_loggers


def _validate_loader(
    trainer: Training, module: Module, loader: Any, index: int, suffix: str
) -> None:
    length = limited_length(known_length(loader), trainer.limit_val_batches, "limit_val_batches")
    epoch = Epoch(loader, length)
    epoch.begin()
    hooks, arguments = trainer.hooks, step_arguments(module.validation_step)
    batch_idx = 0
    while epoch.left:
        batch = moved(trainer.precision.convert_batch(epoch.take()), trainer.device)
        hooks.call("on_validation_batch_start", batch, batch_idx)
        given = {"batch": batch, "batch_idx": batch_idx, "dataloader_idx": index}
        with trainer.precision.default_dtype(), trainer.precision.forward():
            outputs = module.validation_step(*[given[name] for name in arguments if name in given])
        hooks.call("on_validation_batch_end", outputs, batch, batch_idx)
        trainer.metrics.take(
            module._log_entries,
            stage="validate",
            per_batch=True,
            batch_size=batch_size_of(batch),
            suffix=suffix,
        )
        batch_idx += 1
    epoch.finish()
