"""`optimizer.step()` in fused CPU kernels, this package's or torch's: one call per param group.

The kernels round differently from the loops that torch runs by default, so only backends that may
round use them. Hyper-parameters, state and gradients are read when an update runs. If they do not
fit a kernel (no state yet, strides that differ, a hook), the optimizer's own `step()` runs.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepgraph.effects import PartOfStep, run_step, step_with_scaler
from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.updates.cpp import CompiledKernel, CompiledLaunch, compiled_kernels
from stepgraph.lowering.updates.master_weights import Masters
from stepgraph.lowering.updates.not_fused import NotFused, Obstacle
from stepgraph.lowering.updates.torch_fused import Launch, State, launch_of
from stepgraph.optimizer_facts import Group, facts_of
from stepgraph.torch_private import (
    is_wrapped_by_schedule,
    mark_stepped,
    optimizer_has_hooks,
    scaling_in_step,
)


class DoesNotFit(Exception):  # noqa: N818  (a decision, not an error)
    """This call is left to the optimizer's own `step()`."""

    def __init__(self, obstacle: Obstacle, detail: str = "") -> None:
        super().__init__(obstacle, detail)
        self.reason = NotFused(obstacle, detail)


class FusedUpdate:
    """Updates an optimizer's parameters in fused kernels where they fit, else by its own `step()`.

    The first update that fits is a trial: the kernels run on copies and `step()` on the real
    tensors. Later updates are fused only if both results are close (see `closeness`). Each kind of
    kernel has a trial.

    Args:
        optimizer: An optimizer for which `misfit` returned None.
        masters: Float32 copies of the parameters and the state, or None to work without.
        part: The part of a `step()` that this update replaces, or None for all of it.
        kernels: The compiled kernels of this package, or None to use torch's.

    Attributes:
        refusal: Why the latest update was not fused, or None.
        masters: The float32 copies, or None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        masters: Masters | None = None,
        part: PartOfStep | None = None,
        kernels: ModuleType | None = None,
    ) -> None:
        self.refusal: NotFused | None = None
        self.masters, self._kernels = masters, kernels
        self._optimizer, self._part = optimizer, part
        self._own: Callable[[], None] = part or partial(run_step, optimizer)
        self._counts = part is None or part.last
        self._grads: Mapping[int, Tensor] | None = None
        self._own_step = vars(optimizer).get("step")
        self._tried: set[str] = set()
        self._failed = False
        self._compiled: dict[int, CompiledKernel] = {}
        self._parts: dict[tuple[tuple[int, ...], bool], FusedUpdate] = {}
        self._known: list[State] = []
        self._order: list[list[State]] = []

    def __call__(self) -> None:
        """Update the parameters."""
        self._update(None)

    def clipped(self, factor: Tensor) -> None:
        """Multiply the gradients by `factor`, `[]`, and update; the kernels do both in one pass."""
        self._update(factor)

    def scaled(self, scaler: Any) -> None:
        """Run `scaler.step(optimizer)`, which updates if all gradients are finite.

        The scaler unscales in a separate pass, because it must check all gradients before the
        first weight is written. That pass writes them, so a kernel that unscales saves nothing.
        """
        owner = self._optimizer
        update = partial(self._update, None)
        with replaced_step(owner, update), scaling_in_step(owner, supported=False):
            step_with_scaler(scaler, owner)

    def _update(self, factor: Tensor | None) -> None:
        if self._failed:
            self._eagerly(factor)
            return
        try:
            launches = self._launches()
        except DoesNotFit as error:
            self.refusal = error.reason
            self._eagerly(factor)
            return
        self.refusal = None
        if not self._tried.issuperset(launch.kind for launch in launches):
            self._try(launches, factor)
            return
        for launch in launches:
            launch.run(factor)
        self.note_step()

    def note_step(self) -> None:
        """Record for a schedule that the optimizer has stepped."""
        if self._own_step is not None and self._counts:
            mark_stepped(self._optimizer)

    def part(self, places: Sequence[int], *, last: bool) -> FusedUpdate:
        """Return the fused update of the parameters at these positions; see `step_part`."""
        key = tuple(places), last
        if key not in self._parts:
            own = PartOfStep(self._optimizer, places, last=last)
            self._parts[key] = self._for_part(own)
        return self._parts[key]

    def _for_part(self, part: PartOfStep) -> FusedUpdate:
        return FusedUpdate(self._optimizer, self.masters, part, self._kernels)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of kernels that have had a trial: of `compiled`, `torch`, `triton`."""
        tried = (update._tried for update in (self, *self._parts.values()))
        return tuple(sorted(set().union(*tried)))

    def why_not(self) -> NotFused | None:
        """Return why the latest update, or a part of it, was not fused, or None."""
        refusals = (part.refusal for part in self._parts.values())
        return self.refusal or next(filter(None, refusals), None)

    def _eagerly(self, factor: Tensor | None) -> None:
        """Clip, then run the optimizer's own `step()`, as the captured step does."""
        if factor is not None:
            groups = (group["params"] for group in self._optimizer.param_groups)
            grads = [p.grad for params in groups for p in params if p.grad is not None]
            torch._foreach_mul_(grads, factor)
        self._own()

    def _try(self, launches: Sequence[Any], factor: Tensor | None) -> None:
        copies = [launch.copied() for launch in launches]
        try:
            for copy in copies:
                copy.run(factor)
        except Exception as error:
            self._failed = True
            self.refusal = NotFused(Obstacle.KERNEL_FAILS, str(error))
        self._eagerly(factor)
        pairs = zip(launches, copies, strict=True)
        if not self._failed and not all(
            is_close(mine, own)
            for launch, copy in pairs
            for own, mine in zip(launch.written(), copy.written(), strict=True)
        ):
            self._failed, self.refusal = True, NotFused(Obstacle.KERNEL_DIFFERS)
        self._tried.update(launch.kind for launch in launches)

    def _launches(self) -> list[Any]:
        optimizer = self._optimizer
        if has_hooks(optimizer) or vars(optimizer).get("step") is not self._own_step:
            raise DoesNotFit(Obstacle.HOOKS)
        self._bind_states()
        launches = []
        for i, (group, states) in enumerate(zip(optimizer.param_groups, self._order, strict=True)):
            known = self._compiled.get(i)
            if known is None or not known.has_options_of(group):
                if obstacle := self._misfit_of_group(group):
                    raise DoesNotFit(obstacle)
                if known is not None:
                    known.read(group)
            params = group["params"]
            if self._part is not None:
                params, states = self._part.of(i, params), self._part.of(i, states)
            launch = None if known is None else known.launch_as_before(params, states)
            if launch is None:
                launch = self._new_launch(i, group, params, states)
            if launch is not None:
                launches.append(launch)
        return launches

    def _new_launch(
        self, number: int, group: Group, params: list[Tensor], states: list[State]
    ) -> Any:
        """Return the launch for a param group whose tensors changed; None without gradients."""
        given = self._grads
        grads: list[Any] = [p.grad if given is None else given.get(id(p)) for p in params]
        if any(map(operator.is_, grads, repeat(None))):
            kept = [i for i, grad in enumerate(grads) if grad is not None]
            params = [params[i] for i in kept]
            grads = [grads[i] for i in kept]
            states = [states[i] for i in kept]
        return self._fitting(number, group, params, grads, states) if params else None

    def _misfit_of_group(self, group: Mapping[str, Any]) -> Obstacle | None:
        return misfit_of_group(group)

    def _bind_states(self) -> None:
        """Look up the state of every parameter, if the optimizer has replaced its dicts."""
        held, groups = self._optimizer.state, self._optimizer.param_groups
        same = len(held) == len(self._known) and len(groups) == len(self._order)
        if same and all(map(operator.is_, held.values(), self._known)):
            return
        empty: State = {}
        self._known = list(held.values())
        self._order = [[held.get(p, empty) for p in group["params"]] for group in groups]

    def _fitting(
        self,
        number: int,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
    ) -> Launch | CompiledLaunch:
        rule = facts_of(self._optimizer).fused_cpu
        assert rule is not None
        try:
            launch = launch_of(rule, group, params, grads, states)
        except KeyError:
            raise DoesNotFit(Obstacle.NO_STATE) from None
        if not all(isinstance(t, Tensor) for t in launch.written()):
            raise DoesNotFit(Obstacle.STATE_NOT_TENSORS)
        if not _elements_correspond(launch.tensors):
            raise DoesNotFit(Obstacle.STRIDES_DIFFER)
        launch.masters = self.masters
        if self._kernels is None or self.masters is not None:
            return launch
        compiled = self._compiled.get(number)
        if compiled is None:
            compiled = self._compiled[number] = CompiledKernel(self._kernels, rule)
            compiled.read(group)
        return compiled.launch_first(launch) or launch


def fused_update(optimizer: Optimizer, masters: Masters | None = None) -> FusedUpdate | NotFused:
    """Return a fused update for an optimizer, with float32 `masters` if given, or why not."""
    if reason := misfit(optimizer):
        return reason
    kernels = compiled_kernels() if masters is None else None
    return FusedUpdate(
        optimizer, masters, kernels=kernels if isinstance(kernels, ModuleType) else None
    )


def misfit(optimizer: Optimizer) -> NotFused | None:
    """Return why no fused kernel can replace `optimizer.step()`, or None."""
    if facts_of(optimizer).fused_cpu is None:
        return NotFused(Obstacle.NO_CPU_KERNEL, type(optimizer).__name__)
    own_step = vars(optimizer).get("step")
    if own_step is not None and not is_wrapped_by_schedule(own_step):
        return NotFused(Obstacle.STEP_REPLACED)
    for group in optimizer.param_groups:
        if obstacle := misfit_of_group(group):
            return NotFused(obstacle)
        kinds = {(p.dtype, p.device.type, p.layout) for p in group["params"]}
        if len(kinds) > 1:
            return NotFused(Obstacle.SEVERAL_DTYPES)
        if any(d != "cpu" or not t.is_floating_point for t, d, _ in kinds):
            return NotFused(Obstacle.NOT_REAL_ON_CPU)
    return None


def misfit_of_group(group: Mapping[str, Any]) -> Obstacle | None:
    """Return which option of a param group prevents a fused kernel, or None."""
    if group.get("fused") is False or group.get("foreach"):
        return Obstacle.IMPLEMENTATION_CHOSEN
    if group.get("differentiable") or group.get("capturable"):
        return Obstacle.DIFFERENTIABLE_OR_CAPTURABLE
    return None


def has_hooks(optimizer: Optimizer) -> bool:
    """Return whether `step()` runs user code or uses a scaler."""
    own = vars(optimizer)
    return bool(
        optimizer_has_hooks(optimizer)
        or own.get("grad_scale") is not None
        or own.get("found_inf") is not None
    )


@contextlib.contextmanager
def replaced_step(optimizer: Any, step: Callable[[], None]) -> Iterator[None]:
    """Scope in which the first `optimizer.step()` calls `step`; during it the original is back."""
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


def _elements_correspond(tensors: Sequence[list[Tensor]]) -> bool:
    """Return whether elements with one index are at one offset of the memory of all tensors."""
    params, *others = filter(None, tensors)
    sizes = [*map(Tensor.numel, params)]
    if any([*map(Tensor.numel, several)] != sizes for several in others):
        return False
    if all(map(Tensor.is_contiguous, chain(*tensors))):
        return True  # nearly always, and this check runs in every call
    return all(_have_same_strides(params, several) for several in (params, *others))


def _have_same_strides(params: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether the tensors of each pair have equal shapes and dense, equal strides."""
    return all(
        p.shape == other.shape
        and (
            (p.is_contiguous() and other.is_contiguous())
            or (p.stride() == other.stride() and torch.ops.aten.is_non_overlapping_and_dense(p))
        )
        for p, other in zip(params, others, strict=True)
    )
