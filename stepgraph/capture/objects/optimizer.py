"""`torch.optim.Optimizer`: stand-ins for a trace, methods for an eager call, its constants."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from stepgraph.capture.objects.base import TraceContext, TrackedObject
from stepgraph.capture.objects.table import (
    clear_autocast_cache,
    entry_name,
    gradients_of,
    may_clear,
    number_of,
    record_update,
    tracked,
)
from stepgraph.capture.objects.zero_grad_order import ZeroGradOrder
from stepgraph.capture.options.call_options import CallOptions, autocast_off
from stepgraph.capture.options.current import updates
from stepgraph.capture.options.forbidden import Forbidden
from stepgraph.effects import OPS
from stepgraph.optimizer_facts import facts_of
from stepgraph.torch_private import (
    is_wrapped_by_schedule,
    optimizer_has_hooks,
    own_clip_norm,
    own_clip_value,
)

FORBIDDEN_LOOP = Forbidden("an optimizer that keeps its own loop around a closure")
_FORBIDDEN_CLOSURE = Forbidden("passes a closure to an optimizer that is not torch's own")
_FORBIDDEN_HYPER = Forbidden(
    "reads or writes a hyper-parameter that is not a float inside the step"
)
_FORBIDDEN_STATE = Forbidden("reads the state of an optimizer inside the step")

_hyper = OPS.hyper
_scaled_step = OPS.scaled_step
_set_hyper = OPS.set_hyper
_step = OPS.step
_unscale = OPS.unscale
_zero_grad = OPS.zero_grad


class TrackedOptimizer(TrackedObject):
    """An optimizer, the user's own subclasses included.

    Attributes:
        parameters: Its parameters, of all param groups in order.
        groups: The same by param group.
        order: Its updates and `zero_grad()` calls so far in the traced call.
    """

    def __init__(self, value: Optimizer, name: str = "") -> None:
        super().__init__(value, name)
        self._stepped_as_torch = self.steps_as_torch()
        self._handles: int | None = None  # hooks registered in the process at the latest check
        self._step: Callable[..., Any] | None = None  # its `step()` at the latest check
        self.order = ZeroGradOrder(CallOptions())
        self.groups = [list(group["params"]) for group in value.param_groups]
        self.parameters: list[Tensor] = list(itertools.chain.from_iterable(self.groups))
        self._lengths = list(map(len, self.groups))

    @override
    def stand_ins(self, context: TraceContext) -> dict[str, Any]:
        own = type(self.value)
        self.order = ZeroGradOrder(context.options)
        self._stepped_as_torch = self.steps_as_torch()  # before a stand-in replaces `step`
        name = entry_name(self.number)
        step = _step_stand_in(
            name,
            context,
            closure_allowed=own.__module__.startswith("torch.optim."),
            own_loop=isinstance(self.value, LBFGS),
        )
        zero_grad = zero_grad_stand_in(name, windowed=context.options.windowed)
        inherited = own.zero_grad is Optimizer.zero_grad
        groups = [
            ParamGroupStandIn(
                self.number, i, tuple(key for key, v in group.items() if type(v) is float)
            )
            for i, group in enumerate(self.value.param_groups)
        ]
        return {
            "step": step,
            "zero_grad" if inherited else "base_zero_grad": zero_grad,
            "param_groups": groups,
            "state": _FORBIDDEN_STATE,
        }

    @override
    def eager_methods(
        self, options: CallOptions, updated: set[int]
    ) -> dict[str, Callable[..., Any]]:
        return {
            "step": _eager_step(self.value, options, updated),
            "zero_grad": _eager_zero_grad(self.value, options, updated),
        }

    @override
    def unchanged(self) -> bool:
        step, handles = self.value.step, RemovableHandle.next_id
        if handles != self._handles or step != self._step:  # hooks may have been added or removed
            if self.steps_as_torch() != self._stepped_as_torch:
                return False
            self._handles, self._step = handles, step
        groups = [group["params"] for group in self.value.param_groups]
        if list(map(len, groups)) != self._lengths:
            return False
        return all(map(is_, itertools.chain.from_iterable(groups), self.parameters))

    @override
    def may_rehearse(self) -> bool:
        return super().may_rehearse() and self.steps_as_torch()

    def steps_as_torch(self) -> bool:
        """Return whether `step()` is torch's own, without code of the user's before or after it."""
        own_step = vars(self.value).get("step")
        return (
            type(self.value).step.__module__.startswith("torch.optim.")
            and (own_step is None or is_wrapped_by_schedule(own_step))
            and not optimizer_has_hooks(self.value)
        )

    def is_transparent(self) -> bool:
        """Return whether `step()` updates each parameter from its own gradient and state alone.

        Then it reads and writes nothing else, and may run in parts. False if a hyper-parameter is
        a tensor: other code may share it.
        """
        return (
            self.steps_as_torch()
            and facts_of(self.value).separable
            and not any(
                isinstance(value, Tensor) or (key == "differentiable" and value)
                for group in self.value.param_groups
                for key, values in group.items()
                if key != "params"
                for value in (values if isinstance(values, tuple) else (values,))
            )
        )

    @override
    def may_write(self, owner: Any, name: str) -> bool:
        if self._stepped_as_torch:
            return owner is not self.value or name not in ("param_groups", "state", "defaults")
        return owner is not self.value and all(owner is not v for v in vars(self.value).values())

    @override
    def read(self, group: int, key: str) -> float:
        return float(self.value.param_groups[group][key])


class ParamGroupStandIn:
    """Replaces one of `optimizer.param_groups` during a trace."""

    def __init__(self, number: int, index: int, floats: tuple[str, ...]) -> None:
        self.name, self.index, self.floats = entry_name(number), str(index), floats

    def __getitem__(self, key: str) -> Any:
        if key == "params":
            return tracked(self.name).groups[int(self.index)]
        if key not in self.floats:
            _FORBIDDEN_HYPER.refuse()
        return _hyper(number_of(self.name), int(self.index), key).item()

    def __setitem__(self, key: str, value: float) -> None:
        if key not in self.floats:
            _FORBIDDEN_HYPER.refuse()
        number = torch.scalar_tensor(value, dtype=torch.float64)
        _set_hyper(number, number_of(self.name), int(self.index), key)


def _step_stand_in(
    name: str, context: TraceContext, *, closure_allowed: bool, own_loop: bool
) -> Callable[..., Any]:
    """Return the function that a trace inlines for `step`.

    Args:
        name: The optimizer's name in the table.
        context: The options of the call and the scaler of these options.
        closure_allowed: Whether its `step` calls a closure exactly once, before the update.
        own_loop: Whether its `step` calls the closure in a loop of its own.
    """
    options = context.options
    windowed, clip = options.windowed, _clip_stand_in(options)
    casting, clips = options.autocast is not None, options.clips
    scaler = None if context.scaler is None else entry_name(context.scaler)

    def step(closure: Any = None) -> Any:
        loss = None
        if own_loop:
            FORBIDDEN_LOOP.refuse()
        if closure is not None:
            if not closure_allowed:
                _FORBIDDEN_CLOSURE.refuse()
            with torch.enable_grad():
                loss = closure()
        if windowed:
            record_update(name)
        if updates():
            parameters = tracked(name).parameters
            with torch.no_grad():
                if clips and scaler is not None:
                    _unscale(gradients_of(parameters), number_of(scaler), number_of(name))
                clip(parameters)
                detached, gradients = [p.detach() for p in parameters], gradients_of(parameters)
                if scaler is None:
                    _step(detached, gradients, number_of(name))
                else:
                    _scaled_step(detached, gradients, number_of(scaler), number_of(name))
            if casting:
                clear_autocast_cache()
        return loss

    return step


def zero_grad_stand_in(name: str, *, windowed: bool) -> Callable[..., None]:
    """Return the function that a trace inlines for `zero_grad`."""

    def zero_grad(set_to_none: bool = True) -> None:
        if windowed and not may_clear(name):
            return
        parameters = tracked(name).parameters
        with torch.no_grad():
            if set_to_none:
                _zero_grad([p.detach() for p in parameters], number_of(name))
                for p in parameters:
                    p.grad = None
            else:
                for p in parameters:
                    if p.grad is not None:
                        p.grad.zero_()

    return zero_grad


ZERO_GRAD_CODE = zero_grad_stand_in("", windowed=False).__code__
"""The code of all stand-ins for `zero_grad`: an effect stands for its stores to `.grad`."""


def zero_grad_of_base(self: Any, set_to_none: bool = True) -> None:
    """Trace `Optimizer.zero_grad` where a subclass overrides it and calls `super()`."""
    self.base_zero_grad(set_to_none)


def _clip_stand_in(options: CallOptions) -> Callable[[list[Tensor]], None]:
    """Return the function that clips the gradients of parameters before an update."""
    # as source: Dynamo identifies functions by code, and a float that varies becomes symbolic
    bounds = (options.clip_norm, options.clip_value)
    norm, value = (None if bound is None else repr(float(bound)) for bound in bounds)

    def clip(parameters: list[Tensor]) -> None:
        if norm is not None:
            own_clip_norm(parameters, float(norm))
        if value is not None:
            own_clip_value(parameters, float(value))

    return clip


def _eager_step(optimizer: Any, options: CallOptions, updated: set[int]) -> Callable[..., Any]:
    """Return `step` for an eager call: the real one with clipping, the scaler and the window."""
    original = optimizer.step
    scaled = False  # True while the scaler, called from here, calls this function again

    @functools.wraps(original)
    def step(closure: Any = None) -> Any:
        nonlocal scaled
        if scaled:
            return original()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updated.add(id(optimizer))
        if not options.updates:
            return loss
        with autocast_off(options):
            _clip_eagerly(optimizer, options)
            if options.scaler is None:
                returned = original()
            else:
                scaled = True
                try:
                    returned = options.scaler.step(optimizer)
                finally:
                    scaled = False
        if options.autocast is not None:
            torch.clear_autocast_cache()  # it holds casts of the old weights
        return loss if returned is None else returned

    return step


def _clip_eagerly(optimizer: Any, options: CallOptions) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if options.clips and options.scaler is not None:
        options.scaler.unscale_(optimizer)
    if options.clip_norm is not None:
        clip_grad_norm_(parameters, options.clip_norm)
    if options.clip_value is not None:
        clip_grad_value_(parameters, options.clip_value)


def _eager_zero_grad(
    optimizer: Any, options: CallOptions, updated: set[int]
) -> Callable[..., None]:
    """Return `zero_grad` for an eager call: it clears only in the right call of the window."""
    original = optimizer.zero_grad

    @functools.wraps(original)
    def zero_grad(set_to_none: bool = True) -> None:
        if options.updates if id(optimizer) in updated else options.clears:
            original(set_to_none)

    return zero_grad
