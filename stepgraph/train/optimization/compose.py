"""Compose the steps of automatic optimization from a module's hooks and a trainer's options."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from stepgraph.compiler.compile import compile
from stepgraph.train.module import Module
from stepgraph.train.optimization.automatic_step import AutomaticStep, Clipping
from stepgraph.train.optimization.schedules import by_steps
from stepgraph.train.training import Training


def composed_steps(
    trainer: Training, module: Module, training_step: Callable[..., Any]
) -> list[AutomaticStep]:
    """Return a step for each optimizer; without optimizers, one that only computes losses.

    Args:
        trainer: Provides the optimizers and options.
        module: The user's module.
        training_step: The module's, undecorated and bound.
    """
    indices: list[int | None] = list(range(len(trainer.updates.optimizers))) or [None]
    steps = []
    for index in indices:
        step = AutomaticStep(
            module,
            trainer.updates,
            index,
            training_step=training_step,
            precision=trainer.precision,
            schedulers=[
                config
                for config in trainer.lr_scheduler_configs
                if config.optimizer_index == index
                and by_steps(config)
                and trainer.updates.scaler is None  # an overflow is known only after the step
            ],
            clipping=Clipping(trainer.gradient_clip_val, trainer.gradient_clip_algorithm),
            compiled=_compiler(trainer, _name(module, None if len(indices) == 1 else index)),
        )
        if step.hosted:  # the trainer advances them, after it has checked that there was a step
            step.configs = []
        steps.append(step)
    return steps


def _name(module: Module, index: int | None) -> str:
    """Return the name of a step in explanations and warnings: the user's, not our function's."""
    name = f"{type(module).__name__}.training_step"
    return name if index is None else f"{name}, optimizer {index}"


def _compiler(trainer: Training, name: str) -> Callable[[Any], Any]:
    """Return the function that makes a compiled step from a method, or returns it unchanged."""
    if not trainer.options.compile:
        return lambda method: method
    on_fallback = "silent" if trainer.world_size > 1 else "warn"
    return lambda method: compile(_renamed(method, name), on_fallback=on_fallback)


def _renamed(method: Any, name: str) -> Any:
    plain = method.__func__
    function = types.FunctionType(plain.__code__, plain.__globals__, closure=plain.__closure__)
    function.__qualname__ = name
    return types.MethodType(function, method.__self__)
