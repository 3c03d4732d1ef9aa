"""`stepgraph.compile`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, overload

from stepgraph.compiler.compiled_step import CompiledStep
from stepgraph.compiler.options import Options
from stepgraph.errors import ConfigurationError


@overload
def compile(step: Callable[..., Any], **options: Any) -> CompiledStep: ...


@overload
def compile(step: None = None, **options: Any) -> Callable[[Callable[..., Any]], CompiledStep]: ...


def compile(step: Any = None, **options: Any) -> Any:
    """Compile a training step: forward, backward, optimizers, schedulers, all of it.

    The first call runs eagerly. The second is captured, rehearsed on copies and runs eagerly
    too; later calls replay the captured graph. Every path through the step's Python is a variant
    of its own. A step that cannot be captured whole runs eagerly whole, with a reason in
    `explain()`.

    Args:
        step: A function, a bound method, or a function in a class body. Without it, returns a
            decorator.
        **options: See `Options`.

    Returns:
        A `CompiledStep` that is called like `step`.

    Raises:
        ConfigurationError: An option has no meaning.

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
    if step is None:
        return functools.partial(compile, **options)
    checked = Options(**options)
    if isinstance(step, CompiledStep):
        raise _not_a_step(step)
    if inspect.ismethod(step) and isinstance(step.__func__, FunctionType):
        owner = step.__self__
        return CompiledStep(step.__func__, checked, lambda: owner)
    if not isinstance(step, FunctionType):
        raise _not_a_step(step)
    return CompiledStep(step, checked)


def _not_a_step(step: Any) -> ConfigurationError:
    return ConfigurationError(
        "stepgraph.compile takes a function or a method",
        found=type(step).__name__,
        why="it captures the Python of a whole training step",
        hint="decorate the function that calls backward() and step()",
    )
