"""Updates of a training: precision, hooks and counts around the optimizers' own `step()`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from stepgraph import torch_private
from stepgraph.errors import ConfigurationError
from stepgraph.train.hooks import HookTable
from stepgraph.train.optimization.clipping import clip
from stepgraph.train.optimization.gradient_sync import GradientSync
from stepgraph.train.optimization.optimizers import OptimizerWrapper, tracing, unwrapped
from stepgraph.train.optimization.toggles import Toggles


class SkippedUpdate(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by a closure that has no loss, through an optimizer's `step`; nothing is updated."""


class Updates:
    """The optimizers of one training, with precision, hooks and counts.

    Methods that a compiled step calls are a few lines of plain Python; updates of a batch are
    appended to `stepped`, which a compiled step records and replays.

    Args:
        optimizers: The user's own, in order.
        scaler: Scales losses under `"16-mixed"`.
        sync: Reduces gradients between processes, or None in one process.

    Attributes:
        wrappers: The wrappers that `self.optimizers()` returns.
        stepped: Indices of the optimizers that have stepped since the trainer last read them.
        in_place: Called instead of `step` while automatic optimization runs, or None.
        synchronise: Whether a backward reduces gradients between processes.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        scaler: GradScaler | None = None,
        sync: GradientSync | None = None,
    ) -> None:
        self.optimizers = list(optimizers)
        self.scaler = scaler
        self.sync = sync
        self.synchronise = True
        self.toggles = Toggles(self.optimizers)
        self.wrappers = [OptimizerWrapper(o, self, i) for i, o in enumerate(self.optimizers)]
        self.stepped: list[int] = []
        self.scaling = [Scaling() for _ in self.optimizers]
        self.before_backward: tuple[Callable[..., Any], ...] = ()
        self.after_backward: tuple[Callable[..., Any], ...] = ()
        self.before_step: tuple[Callable[..., Any], ...] = ()
        self.before_zero_grad: tuple[Callable[..., Any], ...] = ()
        self.in_place: Callable[..., Any] | None = None

    def use(self, hooks: HookTable) -> None:
        """Set the hooks to call."""
        self.before_backward = hooks["on_before_backward"]
        self.after_backward = hooks["on_after_backward"]
        self.before_step = hooks["on_before_optimizer_step"]
        self.before_zero_grad = hooks["on_before_zero_grad"]

    def of(self, optimizer: Any, what: str) -> OptimizerWrapper:
        """Return the wrapper of an optimizer, given the optimizer or its wrapper.

        Raises:
            ConfigurationError: It was not returned by `configure_optimizers`.
        """
        raw = unwrapped(optimizer)
        for known, wrapper in zip(self.optimizers, self.wrappers):  # noqa: B905  (traced)
            if known is raw:
                return wrapper
        raise ConfigurationError(
            f"{what}: this optimizer does not belong to the training",
            at="the argument `optimizer`",
            found=type(raw).__name__,
            why="the trainer has only the optimizers that `configure_optimizers` returned",
            hint="an optimizer from self.optimizers()",
        )

    def backward(
        self, loss: Tensor, differentiate: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        """Scale a loss, differentiate it, and reduce the gradients between processes."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        for hook in self.before_backward:
            hook(loss)
        differentiate(loss, *args, **kwargs)
        if self.sync is not None and self.synchronise:
            self.sync.reduce(self.toggles.parameters)
        for hook in self.after_backward:
            hook()

    def step(self, wrapper: OptimizerWrapper, closure: Any, kwargs: dict[str, Any]) -> Any:
        """Update with one optimizer; implements `OptimizerWrapper.step`."""
        if self.in_place is not None:
            return self.in_place(wrapper, closure, kwargs)
        if self.scaler is not None:
            return self._scaled_step(wrapper, closure, kwargs)
        raw = wrapper.optimizer
        if closure is None:
            for hook in self.before_step:
                hook(raw)
            result = raw.step(**kwargs)
        else:
            result = raw.step(self._hooked(raw, closure), **kwargs)
        self.stepped.append(wrapper._index)
        return result

    def _hooked(self, raw: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return the closure, followed by the hooks that run before the update."""
        before_step = self.before_step
        if not before_step:
            return closure

        def closure_and_hooks() -> Any:
            loss = closure()
            for hook in before_step:
                hook(raw)
            return loss

        return closure_and_hooks

    def _scaled_step(self, wrapper: OptimizerWrapper, closure: Any, kwargs: dict[str, Any]) -> Any:
        """Unscale and update, unless a gradient overflowed.

        The trainer updates the scale once a batch: if it changed between two optimizers, the second
        one's gradients would be unscaled by a wrong scale.
        """
        raw, index = wrapper.optimizer, wrapper._index
        if not tracing() and index in self.stepped:
            raise _second_update(raw, "optimizer.step()")
        result = None if closure is None else closure()
        if not _has_gradients(raw):
            return result
        if self.before_step:
            self.unscale_(wrapper)
            for hook in self.before_step:
                hook(raw)
        self.scaler.step(raw, **kwargs)  # type: ignore[union-attr]
        self.stepped.append(index)
        return result

    def unscale_(self, wrapper: OptimizerWrapper) -> None:
        """Divide an optimizer's gradients by the loss scale, once between two updates.

        Raises:
            ConfigurationError: It has already stepped in this batch.
        """
        state = self.scaling[wrapper._index]
        if self.scaler is not None and not tracing() and wrapper._index in self.stepped:
            raise _second_update(wrapper.optimizer, "clip_gradients")
        if self.scaler is not None and not state.unscaled:
            self.scaler.unscale_(wrapper.optimizer)
            state.unscaled = state.touched = True

    def clip(self, wrapper: OptimizerWrapper, limit: float | None, algorithm: str) -> Tensor | None:
        """Clip an optimizer's unscaled gradients; return their norm before clipping."""
        if limit is None:
            return None
        if self.scaler is not None and not _has_gradients(wrapper.optimizer):
            return torch.zeros(())
        self.unscale_(wrapper)
        return clip(wrapper.optimizer, limit, algorithm)

    def end_batch(self) -> list[int]:
        """Update the loss scale; return the indices of optimizers whose update was not skipped."""
        stepped = list(self.stepped)
        self.stepped.clear()
        if self.scaler is None:
            return stepped
        touched = [state.touched for state in self.scaling]
        done = [i for i in stepped if not overflowed(self.scaler, self.optimizers[i])]
        for state in self.scaling:
            state.touched = state.unscaled = False
        if stepped or any(touched):
            self.scaler.update()
        return done


class Scaling:
    """The state of one optimizer's scaled gradients in this batch.

    Attributes:
        unscaled: Whether they have been divided by the scale.
        touched: Whether the scaler has checked them, so that its scale must be updated.
    """

    unscaled = False
    touched = False


def _has_gradients(optimizer: Any) -> bool:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                return True
    return False


def overflowed(scaler: GradScaler, optimizer: Optimizer) -> bool:
    """Return whether the latest update of an optimizer was skipped; before `scaler.update()`."""
    found = torch_private.found_inf(scaler, optimizer)
    return any(flag.item() for flag in found.values())


def plain_torch(optimizer: Optimizer) -> bool:
    """Return whether `optimizer` is torch's own and calls a closure once, before the update."""
    own = type(optimizer).__module__.startswith("torch.optim.")
    return own and not isinstance(optimizer, torch.optim.LBFGS)


def counted(optimizer: Optimizer, count: Callable[[], None]) -> Any:
    """Register `count` for every update of `optimizer`; returns the hook's wrapper."""
    return optimizer.register_step_post_hook(functools.partial(_count, count))


def _count(count: Callable[[], None], *_: Any) -> None:
    count()


def _second_update(optimizer: Optimizer, at: str) -> ConfigurationError:
    return ConfigurationError(
        'one batch has a second update of an optimizer under precision="16-mixed"',
        at=f"{at} in training_step",
        found=f"{type(optimizer).__name__} has stepped in this batch",
        why="the loss scale changes once a batch, after all optimizers have used it; a GradScaler "
        "too takes one step() of each optimizer between two update()s",
        hint='one step() of each optimizer in a batch, or precision="bf16-mixed"',
    )
