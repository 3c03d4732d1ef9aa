"""Optimizers with their own loop, such as LBFGS: the step is eager, its closure is captured."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class ClosureSteps:
    """The compiled closures of a step, one for each closure in its source.

    A closure is a new function in every call of the step; its code is the same.

    Args:
        compile_closure: Makes a compiled step of a function.
    """

    def __init__(self, compile_closure: Callable[[types.FunctionType], Any]) -> None:
        self._compile = compile_closure
        self._by_code: dict[types.CodeType, Any] = {}

    @property
    def all(self) -> tuple[Any, ...]:
        """The compiled closures, in the order of their first call."""
        return tuple(self._by_code.values())

    @contextlib.contextmanager
    def in_place(self, optimizers: Sequence[Any]) -> Iterator[None]:
        """Scope in which `step(closure)` of `optimizers` calls the compiled closure."""
        with contextlib.ExitStack() as stack:
            for optimizer in optimizers:
                stack.enter_context(self._replaced(optimizer))
            yield

    @contextlib.contextmanager
    def _replaced(self, optimizer: Any) -> Iterator[None]:
        attributes = optimizer.__dict__
        had, original = "step" in attributes, optimizer.step

        @functools.wraps(original)
        def step(closure: Any) -> Any:
            return original(self._compiled(closure))

        attributes["step"] = step
        try:
            yield
        finally:
            if had:
                attributes["step"] = original
            else:
                attributes.pop("step", None)

    def _compiled(self, closure: Any) -> Any:
        if not isinstance(closure, types.FunctionType):
            return closure
        known = self._by_code.get(closure.__code__)
        if known is None:
            known = self._by_code[closure.__code__] = self._compile(closure)
        known.rebind(closure)
        return known
