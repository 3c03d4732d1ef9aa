"""The step of automatic optimization for one optimizer, composed and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from stepgraph.errors import ConfigurationError
from stepgraph.train.module import Module
from stepgraph.train.optimization.configuration import SchedulerConfig
from stepgraph.train.optimization.optimizers import OptimizerWrapper
from stepgraph.train.optimization.precision import Precision
from stepgraph.train.optimization.updates import SkippedUpdate, Updates, counted, plain_torch
from stepgraph.train.signatures import accepted, overridden, step_arguments, takes


class Micro(NamedTuple):
    """The position of a batch in its accumulation window.

    Attributes:
        first: Whether no batch of the window has had a gradient yet.
        updates: Whether it is the last of the window.
        length: Number of batches in the window.
    """

    first: bool
    updates: bool
    length: int


@dataclass
class Clipping:
    """The trainer's options for clipping."""

    limit: float | None
    algorithm: str


class AutomaticStep:
    """Forward, zero_grad, backward, clip, step, schedules of one optimizer, for one batch.

    Args:
        module: The user's module.
        updates: Its optimizers.
        index: The index of its optimizer; None if there is no optimizer at all.
        training_step: The module's, undecorated and bound.
        precision: The precision of the forward.
        schedulers: The schedules of this optimizer that advance by steps and without a metric.
        clipping: The trainer's options for clipping.
        compiled: Makes a compiled step from a bound method, or returns the method unchanged.
    """

    def __init__(
        self,
        module: Module,
        updates: Updates,
        index: int | None,
        *,
        training_step: Callable[..., Any],
        precision: Precision,
        schedulers: list[SchedulerConfig],
        clipping: Clipping,
        compiled: Callable[[Any], Any],
    ) -> None:
        self.module, self.updates, self.index = module, updates, index
        self.training_step, self.arguments = training_step, step_arguments(training_step)
        self.precision, self.clipping = precision, clipping
        self.configs = schedulers
        self.schedulers = [config.scheduler for config in schedulers]
        self.optimizers, self.scaler = list(updates.optimizers), updates.scaler  # names in graphs
        self.hosted = index is not None and _needs_host(module, updates.optimizers[index])
        self.loops = index is not None and _has_own_loop(updates.optimizers[index], self.scaler)
        self.clips = clipping.limit is not None or _overrides(module, "configure_gradient_clipping")
        self.own_zero_grad = _overrides(module, "optimizer_zero_grad")
        self.zero_grad_indexed = takes(module.optimizer_zero_grad, "optimizer_idx")
        self.epoch = 0
        if index is None:
            compiled = _unchanged  # only a forward: there is nothing to compile
        self.forward_backward = compiled(self._forward_backward)
        self.whole = self.forward_backward if self.hosted else compiled(self._whole)

    @property
    def wrapper(self) -> OptimizerWrapper:
        """The wrapper of its optimizer."""
        assert self.index is not None
        return self.updates.wrappers[self.index]

    def run(self, batch: Any, batch_idx: int, micro: Micro, due: tuple[bool, ...]) -> Any:
        """Perform the step; return the detached outputs, or None if there was no loss."""
        if self.hosted:
            return self._on_host(batch, batch_idx, micro)
        return self.whole(batch, batch_idx, micro.first, micro.updates, micro.length, due)

    def _whole(
        self,
        batch: Any,
        batch_idx: int,
        first: bool,
        updates: bool,
        length: int,
        due: tuple[bool, ...],
    ) -> Any:
        """Forward to schedules; one compiled step with a variant for each combination of flags."""
        outputs = self._forward_backward(batch, batch_idx, first, length)
        if updates and self.index is not None and not (first and outputs is None):
            self._update()
            for scheduler, advances in zip(self.schedulers, due):  # noqa: B905  (traced)
                if advances:
                    self.module.lr_scheduler_step(scheduler, None)
        return outputs

    def _forward_backward(self, batch: Any, batch_idx: int, first: bool, length: int) -> Any:
        """Forward, zero_grad if it is the first of the window, backward."""
        given = {"batch": batch, "batch_idx": batch_idx, "optimizer_idx": self.index}
        with self.precision.forward():
            outputs = self.training_step(*[given[name] for name in self.arguments])
        loss = _loss_of(outputs)
        if loss is None or self.index is None:
            return None if loss is None else detached(outputs)
        if first:
            self._zero_grad(batch_idx)
        part = loss if length == 1 else loss / length
        self.updates.backward(part, self.module.backward, (), {})
        return detached(outputs)

    def _zero_grad(self, batch_idx: int) -> None:
        wrapper = self.wrapper
        for hook in self.updates.before_zero_grad:
            hook(wrapper.optimizer)
        if not self.own_zero_grad:
            wrapper.zero_grad()
        elif self.zero_grad_indexed:
            self.module.optimizer_zero_grad(self.epoch, batch_idx, wrapper, self.index)
        else:
            self.module.optimizer_zero_grad(self.epoch, batch_idx, wrapper)

    def _update(self) -> None:
        """Clip and step; gradients are complete."""
        wrapper, updates = self.wrapper, self.updates
        raw = wrapper.optimizer
        if updates.before_step or self.clips:
            updates.unscale_(wrapper)
        for hook in updates.before_step:
            hook(raw)
        self._clip(wrapper)
        if updates.scaler is None:
            raw.step()
        else:
            updates.scaler.step(raw)

    def _clip(self, wrapper: OptimizerWrapper) -> None:
        if self.clips:
            self.module.configure_gradient_clipping(
                wrapper, self.clipping.limit, self.clipping.algorithm
            )

    def _on_host(self, batch: Any, batch_idx: int, micro: Micro) -> Any:
        """Call `optimizer_step`, or an optimizer with its own loop, which runs the closure."""
        run = _Closure(self, batch, batch_idx, micro)
        if not micro.updates:
            run()
            return run.outputs
        assert self.index is not None
        raw, index = self.updates.optimizers[self.index], self.index
        stepped: list[int] = []
        hook = counted(raw, lambda: stepped.append(index))
        self.updates.in_place = run.step
        try:
            self._call_optimizer_step(batch_idx, run)
        finally:
            self.updates.in_place = None
            hook.remove()
            self.updates.stepped += stepped[:1]  # a subclass's step may call its parent's
        return run.outputs

    def _call_optimizer_step(self, batch_idx: int, closure: _Closure) -> None:
        override, wrapper = self.module.optimizer_step, self.wrapper
        position: list[Any] = [self.epoch, batch_idx, wrapper]
        if takes(override, "optimizer_idx"):
            position.append(self.index)
        extras = accepted(
            override,
            {
                "on_tpu": False,
                "using_native_amp": self.precision.scales,
                "using_lbfgs": not plain_torch(wrapper.optimizer),
            },
        )
        if _overrides(self.module, "optimizer_step"):
            override(*position, closure, **extras)
        else:
            wrapper.step(closure=closure)


class _Closure:
    """The closure for an `optimizer_step` override: runs the training step and differentiates.

    Attributes:
        outputs: The outputs of the latest run.
        ran: Whether it has run.
    """

    def __init__(self, owner: AutomaticStep, batch: Any, batch_idx: int, micro: Micro) -> None:
        self.owner, self.batch, self.batch_idx, self.micro = owner, batch, batch_idx, micro
        self.outputs: Any = None
        self.ran = False

    def __call__(self) -> Any:
        """Return the detached loss."""
        self.ran = True
        micro = self.micro
        self.outputs = self.owner.forward_backward(
            self.batch, self.batch_idx, micro.first, micro.length
        )
        return _loss_of(self.outputs)

    def step(self, wrapper: OptimizerWrapper, closure: Any, kwargs: dict[str, Any]) -> Any:
        """Replace `optimizer.step` while the override runs."""
        raw = wrapper.optimizer
        try:
            if closure is None or not self.owner.loops:
                loss = None if closure is None else closure()
                self._before_update(wrapper)
                self._step(wrapper, kwargs)
                return loss
            return raw.step(closure=lambda: self._evaluate(wrapper, closure), **kwargs)
        except SkippedUpdate:
            return None

    def _evaluate(self, wrapper: OptimizerWrapper, closure: Callable[[], Any]) -> Any:
        loss = closure()
        self._before_update(wrapper)
        return loss

    def _before_update(self, wrapper: OptimizerWrapper) -> None:
        """Check that there is a gradient; unscale, call hooks, clip."""
        if self.ran and self.outputs is None and self.micro.first:
            raise SkippedUpdate
        owner = self.owner
        if owner.updates.before_step or owner.clips:
            owner.updates.unscale_(wrapper)
        for hook in owner.updates.before_step:
            hook(wrapper.optimizer)
        owner._clip(wrapper)

    def _step(self, wrapper: OptimizerWrapper, kwargs: dict[str, Any]) -> None:
        updates = self.owner.updates
        if updates.scaler is None:
            wrapper.optimizer.step(**kwargs)
        else:
            updates.scaler.step(wrapper.optimizer, **kwargs)
            updates.scaling[wrapper._index].touched = True


def _unchanged(method: Any) -> Any:
    return method


def _needs_host(module: Module, optimizer: Any) -> bool:
    """Return whether this optimizer must step from Python that is not traced."""
    return _overrides(module, "optimizer_step") or not plain_torch(optimizer)


def _has_own_loop(optimizer: Any, scaler: Any) -> bool:
    """Return whether the optimizer must call the closure itself, possibly several times."""
    return scaler is None and not plain_torch(optimizer) and takes(optimizer.step, "closure")


def _overrides(module: Module, name: str) -> bool:
    return overridden(module, module.base(), name)


def _loss_of(outputs: Any) -> Tensor | None:
    """Return the loss among the outputs of a training step, or None.

    Raises:
        ConfigurationError: The outputs are not a loss, a dict with a loss, or None.
    """
    if outputs is None or isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        loss = outputs.get("loss")
        if isinstance(loss, Tensor):
            return loss
    raise ConfigurationError(
        "training_step of automatic optimization returns a loss",
        at="training_step",
        found=_described(outputs),
        why="the trainer differentiates it",
        hint="a tensor, a dict with the key `loss`, or None to skip the batch",
    )


def _described(outputs: Any) -> str:
    if isinstance(outputs, dict):
        return f"a dict with the keys {list(outputs)}"
    return type(outputs).__name__


def detached(outputs: Any) -> Any:
    """Return the outputs, detached."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, dict):
        return {key: detached(value) for key, value in outputs.items()}
    if type(outputs) in (list, tuple):
        return type(outputs)([detached(value) for value in outputs])
    return outputs
