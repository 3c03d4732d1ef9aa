"""`optimizer.step()` as one call for each param group: torch's fused CPU kernels.

They round in other places than the loops that torch runs by default, so they belong to backends
that may round. Everything they need is read when they run: hyper-parameters, state, which
gradients exist. Whatever does not fit them - no state yet, another layout, a hook - is left to the
optimizer's own `step()`, which is always right.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim import optimizer as optimizer_module

from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.masters import Masters
from stepgraph.runtime import PartOfStep
from stepgraph.runtime.effects import run_step

Group = dict[str, Any]
State = dict[str, Any]


class DoesNotFit(Exception):  # noqa: N818  (a decision, not an error)
    """This call is left to the optimizer's own step."""


@dataclass(frozen=True)
class Launch:
    """One call of a fused kernel.

    Attributes:
        kernel: Takes lists of tensors, then options.
        tensors: The lists: parameters, gradients, then state. Parameters and state are written.
        steps: The step counters, advanced before the kernel runs; the last list, or empty.
        options: Hyper-parameters as they are now.
        masters: Float32 copies to work on, or None to work on the tensors themselves.
    """

    kernel: Callable[..., Any]
    tensors: tuple[list[Tensor], ...]
    steps: list[Tensor]
    options: dict[str, Any]
    masters: Masters | None = None

    def run(self, factor: Tensor | None) -> None:
        """Advance the counters and update, from gradients multiplied by `factor`."""
        if self.masters is not None:
            self._run_on_masters(self.masters, factor)
        elif factor is not None and factor.dtype is torch.float32:
            # kernels divide by a float32, and store what they have divided
            self._call(self.tensors, {**self.options, "grad_scale": factor.reciprocal()})
        else:
            self._scale(factor)
            self._call(self.tensors, self.options)

    def _run_on_masters(self, masters: Masters, factor: Tensor | None) -> None:
        params, grads, *states = self.tensors
        self._scale(factor)
        wide = [masters.of(params), [g.float() for g in grads], *map(masters.of, states)]
        self._call(wide, self.options)
        masters.round_into([*params, *chain(*states)], [*wide[0], *chain(*wide[2:])])

    def _scale(self, factor: Tensor | None) -> None:
        if factor is not None:
            torch._foreach_mul_(self.tensors[1], factor)

    def _call(self, tensors: Sequence[list[Tensor]], options: dict[str, Any]) -> None:
        if self.steps:
            torch._foreach_add_(self.steps, 1)
            self.kernel(*tensors, self.steps, **options)
        else:
            self.kernel(*tensors, **options)

    def copied(self) -> Launch:
        """Return the same call on copies, with masters of their own."""
        tensors = tuple([t.detach().clone() for t in several] for several in self.tensors)
        masters = None if self.masters is None else Masters()
        return Launch(self.kernel, tensors, [t.clone() for t in self.steps], self.options, masters)

    def written(self) -> Iterable[Tensor]:
        """Return what it writes: gradients, too, where they are clipped."""
        return chain(*self.tensors, self.steps)


class FusedUpdate:
    """Runs an optimizer's update in fused kernels where they fit, else its own `step()`.

    The first update that fits is a trial: the kernels run on copies, `step()` on the real tensors,
    and only when both agree (see `closeness`) are later updates fused.

    Args:
        optimizer: An optimizer for which `misfit` returned None.
        masters: Float32 copies, where the parameters should have some.
        part: The part of a `step()` to stand for, or None for all of it.

    Attributes:
        refusal: Why the latest update was not fused, or None.
        masters: As given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        masters: Masters | None = None,
        part: PartOfStep | None = None,
    ) -> None:
        self.refusal: str | None = None
        self.masters = masters
        self._optimizer, self._part = optimizer, part
        self._own: Callable[[], None] = part or partial(run_step, optimizer)
        self._counts = part is None or part.last
        self._grads: Mapping[int, Tensor] | None = None
        self._own_step = vars(optimizer).get("step")
        self._tried = self._failed = False
        self._parts: dict[tuple[tuple[int, ...], bool], FusedUpdate] = {}
        self._known: list[State] = []
        self._order: list[list[State]] = []

    def __call__(self) -> None:
        """Update the parameters."""
        self._update(None)

    def clipped(self, factor: Tensor) -> None:
        """Multiply the gradients by `factor`, `[]`, then update; the kernels do both at once."""
        self._update(factor)

    def _update(self, factor: Tensor | None) -> None:
        if self._failed:
            self._eagerly(factor)
            return
        try:
            launches = self._launches()
        except DoesNotFit as reason:
            self.refusal = str(reason)
            self._eagerly(factor)
            return
        self.refusal = None
        if not self._tried:
            self._try(launches, factor)
            return
        for launch in launches:
            launch.run(factor)
        self.note_step()

    def note_step(self) -> None:
        """Show a schedule that the optimizer stepped."""
        if self._own_step is not None and self._counts:
            self._optimizer._opt_called = True  # type: ignore[attr-defined]

    def part(self, places: Sequence[int], *, last: bool) -> FusedUpdate:
        """Return a fused update of the parameters at `places`; see the marker `step_part`."""
        key = tuple(places), last
        if key not in self._parts:
            own = PartOfStep(self._optimizer, places, last=last)
            self._parts[key] = type(self)(self._optimizer, self.masters, own)
        return self._parts[key]

    def why_not(self) -> str | None:
        """Return why the latest update, or a part of it, was not fused; None if it was."""
        refusals = (part.refusal for part in self._parts.values())
        return self.refusal or next(filter(None, refusals), None)

    def _eagerly(self, factor: Tensor | None) -> None:
        """Do what the captured step does: clip, then the optimizer's own `step()`."""
        if factor is not None:
            groups = (group["params"] for group in self._optimizer.param_groups)
            grads = [p.grad for params in groups for p in params if p.grad is not None]
            torch._foreach_mul_(grads, factor)
        self._own()

    def _try(self, launches: Sequence[Launch], factor: Tensor | None) -> None:
        copies = [launch.copied() for launch in launches]
        try:
            for copy in copies:
                copy.run(factor)
        except Exception as error:
            self._failed, self.refusal = True, f"the fused kernel fails: {error}"
        self._eagerly(factor)
        pairs = zip(launches, copies, strict=True)
        if not self._failed and not all(
            is_close(mine, own)
            for launch, copy in pairs
            for own, mine in zip(launch.written(), copy.written(), strict=True)
        ):
            self._failed, self.refusal = True, "the fused kernel differs from step()"
        self._tried = True

    def _launches(self) -> list[Any]:
        optimizer = self._optimizer
        if has_hooks(optimizer) or vars(optimizer).get("step") is not self._own_step:
            raise DoesNotFit("code of the user's runs with step()")
        self._look_up_states()
        launches = []
        for i, (group, states) in enumerate(zip(optimizer.param_groups, self._order, strict=True)):
            if reason := self._misfit_of_group(group):
                raise DoesNotFit(reason)
            params = group["params"]
            if self._part is not None:
                params, states = self._part.of(i, params), self._part.of(i, states)
            given = self._grads
            grads: list[Any] = [p.grad if given is None else given.get(id(p)) for p in params]
            if any(map(operator.is_, grads, repeat(None))):
                kept = [i for i, grad in enumerate(grads) if grad is not None]
                params = [params[i] for i in kept]
                grads = [grads[i] for i in kept]
                states = [states[i] for i in kept]
            if params:
                launches.append(self._fitting(group, params, grads, states))
        return launches

    def _misfit_of_group(self, group: Mapping[str, Any]) -> str | None:
        return misfit_of_group(group)

    def _look_up_states(self) -> None:
        """Bind the state of every parameter; again when the optimizer holds other dicts."""
        held, groups = self._optimizer.state, self._optimizer.param_groups
        same = len(held) == len(self._known) and len(groups) == len(self._order)
        if same and all(map(operator.is_, held.values(), self._known)):
            return
        empty: State = {}
        self._known = list(held.values())
        self._order = [[held.get(p, empty) for p in group["params"]] for group in groups]

    def _fitting(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> Launch:
        try:
            launch = _LAUNCHES[type(self._optimizer)](group, params, grads, states)
        except KeyError:
            raise DoesNotFit("it has not stepped every parameter yet") from None
        for tensors in launch.tensors:
            if not all(map(Tensor.is_contiguous, tensors)) and not _same_layout(params, tensors):
                raise DoesNotFit("parameters, gradients and state are laid out differently")
        return launch if self.masters is None else replace(launch, masters=self.masters)


def fused_update(optimizer: Optimizer, masters: Masters | None = None) -> FusedUpdate | str:
    """Return a fused update for an optimizer, with float32 `masters` if given, or why not."""
    return misfit(optimizer) or FusedUpdate(optimizer, masters)


def misfit(optimizer: Optimizer) -> str | None:
    """Return why no fused kernel does what `optimizer.step()` does, or None."""
    if type(optimizer) not in _LAUNCHES:
        return f"no fused CPU kernel for {type(optimizer).__name__}"
    own_step = vars(optimizer).get("step")
    if own_step is not None and not hasattr(own_step, "_wrapped_by_lr_sched"):
        return "its step() was replaced"
    for group in optimizer.param_groups:
        if reason := misfit_of_group(group):
            return reason
        kinds = {(p.dtype, p.device.type, p.layout) for p in group["params"]}
        if len(kinds) > 1:
            return "a param group of several dtypes"
        if any(d != "cpu" or not t.is_floating_point for t, d, _ in kinds):
            return "parameters that are no real numbers on the CPU"
    return None


def misfit_of_group(group: Mapping[str, Any]) -> str | None:
    """Return which option of a param group stands against a fused kernel, or None."""
    if group.get("fused") is False or group.get("foreach"):
        return "its options choose another implementation"
    if group.get("differentiable") or group.get("capturable"):
        return "differentiable or capturable"
    return None


def has_hooks(optimizer: Optimizer) -> bool:
    """Return whether code of the user's runs before or after `step()`."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or optimizer_module._global_optimizer_pre_hooks
        or optimizer_module._global_optimizer_post_hooks
        or getattr(optimizer, "grad_scale", None) is not None
        or getattr(optimizer, "found_inf", None) is not None
    )


@contextlib.contextmanager
def replaced_step(optimizer: Any, step: Callable[[], None]) -> Iterator[None]:
    """Scope in which `optimizer.step()`, called once, is `step`, which sees the original there."""
    attributes: dict[str, Any] = vars(optimizer)
    had, original = "step" in attributes, attributes.get("step")

    def restore() -> None:
        attributes.pop("step", None)
        if had:
            attributes["step"] = original

    def once() -> None:
        restore()
        step()

    attributes["step"] = once
    try:
        yield
    finally:
        restore()


def _adam(group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> Launch:
    beta1, beta2 = group["betas"]
    amsgrad = group["amsgrad"]
    decoupled = group["decoupled_weight_decay"]
    return Launch(
        torch._fused_adamw_ if decoupled else torch._fused_adam_,
        (
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if amsgrad else [],
        ),
        [state["step"] for state in states],
        {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": group["weight_decay"],
            "eps": group["eps"],
            "amsgrad": amsgrad,
            "maximize": group["maximize"],
        },
    )


def _sgd(group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> Launch:
    momentum = group["momentum"]
    buffers = [state["momentum_buffer"] for state in states] if momentum else []
    if any(map(operator.is_, buffers, repeat(None))):
        raise KeyError
    return Launch(
        torch._fused_sgd_,
        (params, grads, buffers),
        [],
        {
            "weight_decay": group["weight_decay"],
            "momentum": momentum,
            "lr": group["lr"],
            "dampening": group["dampening"],
            "nesterov": group["nesterov"],
            "maximize": group["maximize"],
            "is_first_step": False,
        },
    )


def _adagrad(
    group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]
) -> Launch:
    return Launch(
        torch._fused_adagrad_,
        (params, grads, [state["sum"] for state in states]),
        [state["step"] for state in states],
        {
            "lr": group["lr"],
            "lr_decay": group["lr_decay"],
            "weight_decay": group["weight_decay"],
            "eps": group["eps"],
            "maximize": group["maximize"],
        },
    )


_LAUNCHES: Mapping[type, Callable[..., Launch]] = {
    Adam: _adam,
    AdamW: _adam,
    SGD: _sgd,
    Adagrad: _adagrad,
}


def _same_layout(params: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether elements that belong together lie at the same place of their memory."""
    return all(
        p.stride() == other.stride() and torch.ops.aten.is_non_overlapping_and_dense(p)
        for p, other in zip(params, others, strict=True)
    )
