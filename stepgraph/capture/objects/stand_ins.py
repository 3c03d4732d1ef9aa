"""Python that exists to be traced: what Dynamo inlines in the place of torch's own methods.

Nothing here runs outside a trace. Every stand-in reads its subject through `TABLE`, a global that
outlives the trace, so that the names of tensors and the guards on them stay valid at replay when
the stand-ins are gone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from stepgraph.capture.options.call_options import Terms
from stepgraph.capture.options.current import divisor, updates, weight
from stepgraph.ir.markers import OPS
from stepgraph.torch_private import assume_constant_result

_clip_norm = torch.nn.utils.clip_grad_norm_.__wrapped__  # type: ignore[attr-defined]
_clip_value = torch.nn.utils.clip_grad_value_.__wrapped__  # type: ignore[attr-defined]
_add_grad_ = OPS.add_grad_
_check = OPS.check
_ema = OPS.ema
_first_grad = OPS.first_grad
_hyper = OPS.hyper
_log = OPS.log
_lr_step = OPS.lr_step
_scaled_step = OPS.scaled_step
_set_hyper = OPS.set_hyper
_step = OPS.step
_unscale = OPS.unscale
_zero_grad = OPS.zero_grad


class Table:
    """Namespace of subjects, `subject_0`, `subject_1` and so on."""


TABLE = Table()


class Opaque:
    """Something a trace must not look into; meeting one refuses the step for `reason`."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        self.reason, self.hint = reason, hint


REFUSE_APPEND = Opaque("appends something that is neither a tensor nor a number to a list")
REFUSE_HYPER = Opaque("reads or writes a hyper-parameter that is not a float inside the step")
REFUSE_LIST = Opaque("reads a list that the step appends to")
REFUSE_CLOSURE = Opaque("passes a closure to an optimizer that is not torch's own")
REFUSE_LOOP = Opaque("an optimizer that keeps its own loop around a closure")
REFUSE_CLIP = Opaque("clips by hand gradients that are scaled; clip_norm clips the true ones")
REFUSE_EPOCH = Opaque("passes an epoch to scheduler.step()")


def backward_stand_in(*, windowed: bool, casting: bool, scaler: int | None = None) -> Any:
    """Return what replaces `loss.backward()`.

    Args:
        windowed: Whether the backward is one of several, and seeded with a share.
        casting: Whether autocast is on around the step and must be off in here.
        scaler: The place in the table of the scaler by whose scale the seed is multiplied.
    """
    scaler_name = None if scaler is None else f"subject_{scaler}"

    def backward(
        loss: Tensor,
        leaves: list[Tensor],
        gradient: Tensor | None,
        retain_graph: bool | None,
        allow_unused: bool,
    ) -> None:
        if windowed:
            seed = torch.ones_like(loss) if gradient is None else gradient
            gradient = seed / divisor() if divisor() > 1 else seed
            gradient = gradient * weight() if weight() < 1 else gradient
        if scaler_name is not None:
            seed = torch.ones_like(loss) if gradient is None else gradient
            scale = getattr(TABLE, scaler_name).scale
            gradient = seed * scale.to(device=loss.device, non_blocking=True)
        if casting:
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                _backward(loss, leaves, gradient, retain_graph, allow_unused)
        else:
            _backward(loss, leaves, gradient, retain_graph, allow_unused)

    return backward


def _backward(
    loss: Tensor,
    leaves: list[Tensor],
    gradient: Tensor | None,
    retain_graph: bool | None,
    allow_unused: bool,
) -> None:
    """Compute gradients first, then put them into `.grad` as `AccumulateGrad` does."""
    values = torch.autograd.grad(
        loss, leaves, gradient, retain_graph=retain_graph, allow_unused=allow_unused
    )
    with torch.no_grad():
        for leaf, value in zip(leaves, values):  # noqa: B905  (traced)
            if value is not None:
                if leaf.grad is None:
                    leaf.grad = _first_grad(leaf, value)
                else:
                    _add_grad_(leaf.grad, value)


@assume_constant_result
def note_update(name: str) -> None:
    """Tell the subject, while the trace goes on, that its update has come."""
    getattr(TABLE, name).order.note_update()


@assume_constant_result
def _may_clear(name: str) -> bool:
    """Ask the subject, while the trace goes on, whether clearing means something here."""
    return bool(getattr(TABLE, name).order.may_clear())


@assume_constant_result
def _recast() -> None:
    """Let weights that have changed be cast again, while the trace goes on."""
    torch.clear_autocast_cache()


def subject_of(name: str) -> Any:
    """Return a subject, for stand-ins in other files.

    Through this file the table has one name, whoever reads it: in guards, and for the tensors.
    """
    return getattr(TABLE, name)


def number_of(name: str) -> int:
    """Return the number in the name of a subject.

    Stand-ins keep names: an int that varies between traces would become symbolic.
    """
    return int(name.removeprefix("subject_"))


def gradients_of(parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients that are there."""
    return [p.grad for p in parameters if p.grad is not None]


class Group:
    """Stands in for one of `optimizer.param_groups`."""

    def __init__(self, number: int, index: int, floats: tuple[str, ...]) -> None:
        self.name, self.index, self.floats = f"subject_{number}", str(index), floats

    def __getitem__(self, key: str) -> Any:
        if key == "params":
            return getattr(TABLE, self.name).groups[int(self.index)]
        if key not in self.floats:
            return REFUSE_HYPER.reason
        return _hyper(number_of(self.name), int(self.index), key).item()

    def __setitem__(self, key: str, value: float) -> None:
        if key not in self.floats:
            REFUSE_HYPER.reason  # noqa: B018
        number = torch.scalar_tensor(value, dtype=torch.float64)
        _set_hyper(number, number_of(self.name), int(self.index), key)


def optimizer_stand_ins(
    number: int,
    terms: Terms,
    *,
    closure_allowed: bool,
    own_loop: bool = False,
    scaler: int | None = None,
) -> dict[str, Any]:
    """Return what replaces `step` and `zero_grad` on an optimizer.

    Args:
        number: The optimizer's place in the table.
        terms: The terms of the call.
        scaler: The place of the scaler of the terms.
        closure_allowed: Whether its `step` is known to call a closure once and first.
        own_loop: Whether its `step` calls the closure as often as it likes.
    """
    name = f"subject_{number}"
    windowed, clip = terms.windowed, _clipping(terms)
    casting, clips = terms.autocast is not None, terms.clips
    scaler_name = None if scaler is None else f"subject_{scaler}"

    def step(closure: Any = None) -> Any:
        loss = None
        if own_loop:
            REFUSE_LOOP.reason  # noqa: B018
        if closure is not None:
            if not closure_allowed:
                REFUSE_CLOSURE.reason  # noqa: B018
            with torch.enable_grad():
                loss = closure()
        if windowed:
            note_update(name)
        if updates():
            parameters = getattr(TABLE, name).parameters
            with torch.no_grad():
                if clips and scaler_name is not None:
                    _unscale(gradients_of(parameters), number_of(scaler_name), number_of(name))
                clip(parameters)
                detached, gradients = [p.detach() for p in parameters], gradients_of(parameters)
                if scaler_name is None:
                    _step(detached, gradients, number_of(name))
                else:
                    _scaled_step(detached, gradients, number_of(scaler_name), number_of(name))
            if casting:
                _recast()
        return loss

    def zero_grad(set_to_none: bool = True) -> None:
        if windowed and not _may_clear(name):
            return
        parameters = getattr(TABLE, name).parameters
        with torch.no_grad():
            if set_to_none:
                _zero_grad([p.detach() for p in parameters], number_of(name))
                for p in parameters:
                    p.grad = None
            else:
                for p in parameters:
                    if p.grad is not None:
                        p.grad.zero_()

    return {"step": step, "zero_grad": zero_grad}


def _clipping(terms: Terms) -> Any:
    """Return what clips the gradients of parameters before an update."""
    # as text: Dynamo knows a function by its code, and a float that varies would become symbolic
    bounds = (terms.clip_norm, terms.clip_value)
    norm, value = (None if bound is None else repr(float(bound)) for bound in bounds)

    def clip(parameters: list[Tensor]) -> None:
        if norm is not None:
            _clip_norm(parameters, float(norm))
        if value is not None:
            _clip_value(parameters, float(value))

    return clip


def refuse_clipping(*args: Any, **kwargs: Any) -> None:
    """Take the place of what clips where gradients are scaled."""
    REFUSE_CLIP.reason  # noqa: B018


def zero_grad_of_base(self: Any, set_to_none: bool = True) -> None:
    """Trace `Optimizer.zero_grad` where a subclass overrides it and calls `super()`."""
    self.base_zero_grad(set_to_none)


def scheduler_stand_ins(number: int, terms: Terms, *, n_groups: int) -> dict[str, Any]:
    """Return what replaces the methods of a learning rate scheduler."""
    name, indices = f"subject_{number}", tuple(map(str, range(n_groups)))

    def step(metrics: Any = None, epoch: Any = None) -> None:
        if not updates():
            return
        if epoch is not None or isinstance(metrics, int):
            REFUSE_EPOCH.reason  # noqa: B018
        if isinstance(metrics, float):
            metrics = torch.scalar_tensor(metrics, dtype=torch.float64)
        _lr_step(None if metrics is None else metrics.detach(), number_of(name))

    def get_last_lr() -> list[Any]:
        return [_hyper(number_of(name), int(i), "last_lr").item() for i in indices]

    return {"step": step, "get_last_lr": get_last_lr}


def averaged_model_stand_ins(number: int, terms: Terms) -> dict[str, Any]:
    """Return what replaces `update_parameters` of an `AveragedModel`."""
    name = f"subject_{number}"

    def update_parameters(model: Any) -> None:
        if not updates():
            return
        with torch.no_grad():
            averages = [t.detach() for t in getattr(TABLE, name).averages]
            parameters = [t.detach() for t in model.parameters()]
            _ema(averages, parameters, list(model.buffers()), number_of(name))

    return {"update_parameters": update_parameters}


def is_all_true(valid: Tensor) -> bool:
    """Trace the argument checks of `torch.distributions`: they raise when the step is replayed."""
    _check(valid)
    return True


def is_dependent(constraint: Any) -> bool:
    """Trace `torch.distributions.constraints.is_dependent`, which Dynamo skips."""
    return isinstance(constraint, constraints._Dependent)


class Recorder:
    """Stands in for a list of the user's that grows in the step."""

    def __init__(self, number: int) -> None:
        self.name = f"subject_{number}"

    def append(self, value: Any) -> None:
        """Log one value."""
        if isinstance(value, torch.Tensor):
            _log(value, number_of(self.name), False)
        elif isinstance(value, float):
            _log(torch.scalar_tensor(value, dtype=torch.float64), number_of(self.name), True)
        elif isinstance(value, int) and not isinstance(value, bool):
            _log(torch.scalar_tensor(value, dtype=torch.int64), number_of(self.name), True)
        else:
            REFUSE_APPEND.reason  # noqa: B018

    def extend(self, values: Any) -> None:
        """Log several values."""
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        REFUSE_LIST.reason  # noqa: B018
        return 0

    def __getitem__(self, index: Any) -> Any:
        return REFUSE_LIST.reason

    def __iter__(self) -> Any:
        return REFUSE_LIST.reason
