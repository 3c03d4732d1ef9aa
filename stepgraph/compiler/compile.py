"""`stepgraph.compile`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, overload

from stepgraph.compiler.compiled_step import CompiledStep, check_callable
from stepgraph.compiler.options import Options


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
    check_callable(step)
    if isinstance(step, CompiledStep):
        step = step._function
    return CompiledStep(step, Options(**options))
