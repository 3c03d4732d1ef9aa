"""`stepgraph.compile`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from stepgraph.capture import Microbatches
from stepgraph.compiler.compiled_step import CompiledStep
from stepgraph.compiler.options import Options
from stepgraph.errors import ConfigurationError


def compile(
    step: Any = None,
    *,
    accumulate: int = 1,
    microbatches: int | Microbatches = 1,
    precision: str | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    backend: str = "auto",
    keep_grads: bool = True,
    verify: int = 0,
    on_fallback: str = "warn",
    passes: Any = None,
) -> Any:
    """Compile a training step: forward, backward, optimizers, schedulers, all of it.

    The first call runs eagerly. The second is captured and rehearsed: its program runs once, its
    writes are undone, the call runs eagerly, and both are compared. Later calls replay the
    captured graph. Every path through the step's Python is a separate variant. A step that cannot
    be captured as a whole runs eagerly as a whole, with a reason in `explain()`.

    Args:
        step: A function, a bound method, or a function in a class body. Without it, returns a
            decorator.
        accumulate: Calls that make one update. `zero_grad()` acts in the first of them, updates,
            schedules, averages and clipping in the last; every backward is seeded with 1/n.
            `flush()` updates from a window that ends early.
        microbatches: Split the batch n ways inside a call, along dim 0 of every tensor among the
            arguments, and run the step for each part with the activations of one alive at a
            time. `zero_grad()` acts in the first part, updates, schedules, averages and clipping
            in the last; every backward is seeded with the part's share of the samples, so the
            loss must be a mean. Returned scalars are averaged, other tensors concatenated. A
            step whose result depends on how the batch is split is refused;
            `stepgraph.Microbatches` allows some of these differences.
        precision: None; `"bf16-mixed"`, autocast to bfloat16; `"16-mixed"`, autocast to float16
            with a loss scale that belongs to the step. Backward and updates are not autocast.
            `"bf16-true"`, for a model in bfloat16: floating-point arguments are cast to it.
            Fused updates use float32 copies of weights and state that the step keeps.
        clip_norm: Clip the norm of each optimizer's gradients right before its `step()`.
        clip_value: Clip the absolute values of the gradients right before `step()`.
        backend: `"eager"` replays ATen operators without autograd. `"inductor"` compiles the
            operators between effects, forward and backward together; it needs a C++ compiler and
            rounds differently. `"auto"` chooses; today it is `"eager"`.
        keep_grads: False promises that no code reads `.grad` between calls. Gradients that the
            next call clears unread are then not computed, and others are freed after their last
            use: `.grad` is None.
        verify: For the first n replays of each variant, run the program, undo its writes, run the
            user's Python, and compare.
        on_fallback: What to do when the step must run eagerly: `"warn"` once per reason, raise an
            `"error"` (`CaptureError`), or `"silent"`.
        passes: Rewrites of the step graph: a `stepgraph.passes.Pipeline`, or a function that
            receives the default one and returns one.

    Returns:
        A `CompiledStep` that is called like `step`, or a decorator that makes one.

    Raises:
        ConfigurationError: An option is invalid or not implemented, or `step` is not a Python
            function or method.

    Example:
        >>> import torch, stepgraph
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> @stepgraph.compile
        ... def training_step(x):
        ...     optimizer.zero_grad()
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> for _ in range(3):
        ...     loss = training_step(torch.ones(4, 2))
        >>> training_step.explain().captured
        True
    """
    options = Options(
        accumulate=accumulate,
        microbatches=microbatches,
        precision=precision,
        clip_norm=clip_norm,
        clip_value=clip_value,
        backend=backend,
        keep_grads=keep_grads,
        verify=verify,
        on_fallback=on_fallback,
        passes=passes,
    )
    return _decorate(options) if step is None else _decorate(options)(step)


def _decorate(options: Options) -> Callable[[Any], CompiledStep]:
    def decorate(step: Any) -> CompiledStep:
        function = getattr(step, "__func__", step)
        if not isinstance(function, FunctionType) or _is_generator_or_coroutine(function):
            raise _not_a_step(step)
        if not inspect.ismethod(step):
            return CompiledStep(function, options)
        owner = step.__self__
        return CompiledStep(function, options, lambda: owner)

    return decorate


def _is_generator_or_coroutine(function: FunctionType) -> bool:
    """Return whether a call of `function` only makes a generator or a coroutine."""
    return inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)


def _not_a_step(step: Any) -> ConfigurationError:
    function = getattr(step, "__func__", step)
    found = type(step).__name__
    if isinstance(function, FunctionType):
        kind = "generator" if inspect.isgeneratorfunction(function) else "coroutine"
        found = f"a {kind} function, {function.__qualname__}"
    return ConfigurationError(
        "stepgraph.compile takes a function or a method",
        found=found,
        why="it captures the Python of a whole training step",
        hint="decorate the function that calls backward() and step()",
    )


def with_backend(step: CompiledStep, backend: str) -> CompiledStep:
    """Return the same step, compiled again with another backend; its refusals are silent."""
    options = dataclasses.replace(step._options, backend=backend, on_fallback="silent")
    return CompiledStep(step._plain, options, step._owner)
