"""The wrappers returned by `self.optimizers()`, whose `step` includes precision and hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from stepgraph import torch_private
from stepgraph.errors import ConfigurationError
from stepgraph.train.optimization.toggles import Toggles

_OWN = ("optimizer", "_updates", "_index", "step", "zero_grad")


class UpdatesProtocol(Protocol):
    """The updates of a training, as a wrapper uses them; see `updates.Updates`."""

    toggles: Toggles
    synchronise: bool

    def step(self, wrapper: OptimizerWrapper, closure: Any, kwargs: dict[str, Any]) -> Any:
        """Update the parameters of one optimizer."""


class OptimizerWrapper:
    """An optimizer whose `step` also scales, calls hooks and counts.

    All other attributes are read from and written to the optimizer, and `isinstance` is true for
    its class. Only in a trace the wrapper is an ordinary object, whose attribute is the real
    optimizer, so that a step graph names that one.

    Attributes:
        optimizer: The user's own optimizer. Its `step()` does not include precision and hooks.
    """

    optimizer: Optimizer
    _updates: UpdatesProtocol
    _index: int

    def __init__(self, optimizer: Optimizer, updates: UpdatesProtocol, index: int) -> None:
        self.__dict__.update(optimizer=optimizer, _updates=updates, _index=index)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Update the parameters.

        Args:
            closure: Computes the loss and its gradients; the optimizer may call it several times.
            **kwargs: Passed to the optimizer's own `step`.

        Returns:
            The result of the optimizer's own `step`: the closure's value, or None.

        Raises:
            ConfigurationError: `closure` cannot be called.
        """
        if closure is not None and not callable(closure):
            raise ConfigurationError(
                "optimizer.step takes a closure that can be called",
                at="the argument `closure`",
                found=type(closure).__name__,
                why="it is called without arguments to compute the loss and its gradients",
                hint="optimizer.step(closure) with a function, or optimizer.step()",
            )
        return self._updates.step(self, closure, kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the optimizer's parameters."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Scope in which only this optimizer's parameters require gradients.

        Parameters of the other optimizers have `requires_grad` False inside. The flags are
        restored on exit, also after an exception, and scopes may be nested.

        Args:
            sync_grad: False skips the reduction of gradients between processes, for all but the
                last batch of an accumulation.
        """
        updates = self._updates
        toggles = updates.toggles
        before = toggles.switch(self._index)
        synchronised = updates.synchronise
        if not sync_grad:
            updates.synchronise = False
        try:
            yield
        finally:
            toggles.restore(before)
            if not sync_grad:
                updates.synchronise = synchronised

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            self.__dict__[name] = value
        else:
            setattr(self.optimizer, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self) if being_traced() else type(self.optimizer)

    def __repr__(self) -> str:
        return f"OptimizerWrapper({self.optimizer!r})"

    def __reduce__(self) -> Any:
        return OptimizerWrapper, (self.optimizer, self._updates, self._index)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizerWrapper:
        return self  # a copy would step the same parameters


def unwrapped(optimizer: Any) -> Any:
    """Return the user's own optimizer of a wrapper; any other value unchanged."""
    if type(optimizer) is OptimizerWrapper:
        return optimizer.optimizer
    return optimizer


def being_traced() -> bool:
    """Return whether this is called during a trace by the tracer itself, not by traced code."""
    return torch_private.is_tracing()


def tracing() -> bool:
    """Return whether this line is being traced by a compiler."""
    return torch.compiler.is_compiling()
