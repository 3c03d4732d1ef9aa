"""`optimizer.step()` in the Triton kernels, for parameters on a GPU.

An update of all param groups is one table on the device and two launches. Hyper-parameters are
rows in device memory, compared and copied in each call, so a schedule recompiles nothing. The
trial of `FusedUpdate` happens in one call; it copies what the update writes and waits for the
device.

The kernels need the step counters on the device of their parameters, as torch's own `fused=True`
has them. Torch creates them on the CPU by default; the first fused update moves them, which
torch's `step()` accepts.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepgraph.effects import PartOfStep, step_with_scaler
from stepgraph.lowering.updates.cpu import (
    DoesNotFit,
    FusedUpdate,
    has_hooks,
    replaced_step,
)
from stepgraph.lowering.updates.master_weights import Masters
from stepgraph.lowering.updates.not_fused import NotFused, Obstacle
from stepgraph.lowering.updates.torch_fused import State
from stepgraph.optimizer_facts import Group
from stepgraph.torch_private import is_wrapped_by_schedule, scaling_in_step


class KernelLaunch:
    """One update of any number of tensors by the kernels; corresponds to `Launch` on a CPU.

    Args:
        family: The kernels of the optimizer.
        targets: Parameters, each with its gradient, state and row of hyper-parameters.
        groups: The `param_groups` of the optimizer.
        made: The tables that exist already, by whether gradients are clipped. Filled.
    """

    kind = "triton"

    def __init__(
        self, family: Any, targets: list[Any], groups: Sequence[Group], made: dict[str, Any]
    ) -> None:
        self._family, self._targets, self._groups, self._made = family, targets, groups, made
        self._prepared: str | None = None

    def run(
        self, factor: Tensor | None, scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> None:
        """Advance the counters and update.

        Args:
            factor: A factor for the gradients, `[]`, or None.
            scale: A divisor for the gradients, `[]` float32, or None. Not together with `factor`.
            found_inf: `[]` float32: nothing is updated if it is not zero; or None.
        """
        grads = "keep" if factor is None and scale is None else "clipped"
        if self._prepared != grads:
            self.prepare(clipped=grads == "clipped")
        self.launch(factor, scale, found_inf)

    def prepare(self, *, clipped: bool) -> None:
        """Copy to the device what a launch reads: addresses and hyper-parameters.

        Args:
            clipped: Whether the launch will multiply the gradients and store the products.

        Raises:
            ValueError: The kernels do not support a tensor; nothing has been written.
        """
        for target in self._targets:
            for name in self._family.counters:
                counter = target.state.get(name)
                if counter is not None and counter.device != target.param.device:
                    target.state[name] = counter.to(target.param.device)
        grads = "clipped" if clipped else "keep"
        update = self._made.get(grads)
        if update is None or update.group_count != len(self._groups):
            make = _catalogue().update_class(self._family)
            self._made[grads] = make(self._family, self._targets, self._groups, grads=grads)
        else:
            update.rebind(self._targets, self._groups)
            update.set_hyper(self._groups)
        self._prepared = grads

    def set_hyper(self) -> None:
        """Copy the hyper-parameters to the device that have changed since `prepare`."""
        self._made[self._prepared or "keep"].set_hyper(self._groups)

    def launch(
        self,
        factor: Tensor | None,
        scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Launch the prepared update, without a copy to the device or a wait for it."""
        if factor is not None:
            scale = factor.to(torch.float32).reciprocal()
        update = self._made["keep" if scale is None else "clipped"]
        update.launch(scale=scale, found_inf=found_inf)

    @property
    def tables(self) -> object:
        """The identity of the tables: a recorded launch is valid as long as this value is equal."""
        update = self._made[self._prepared or "keep"]
        return (id(update), update.builds, self._family.name)

    def copied(self) -> KernelLaunch:
        """Return the same call on copies."""
        targets = [
            type(target)(
                target.param.clone(),
                target.grad.clone(),
                {name: _copy_of(value) for name, value in target.state.items()},
                target.group,
                name=target.name,
            )
            for target in self._targets
        ]
        return KernelLaunch(self._family, targets, self._groups, {})

    def written(self) -> Iterable[Tensor]:
        """Return the tensors that it writes, and the gradients, written where they are clipped."""
        for target in self._targets:
            yield from (target.param, target.grad)
            yield from (value for value in target.state.values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class _Latest:
    """A prepared launch, and the values it was prepared from."""

    launch: KernelLaunch
    clipped: bool
    grads: Mapping[int, Tensor] | None
    facts: tuple[Any, ...]


class KernelUpdate(FusedUpdate):
    """Updates parameters in the Triton kernels if they fit, else by the optimizer's `step()`.

    Args:
        optimizer: An optimizer for which `kernel_misfit` returned None.
        masters: Must be None: the kernels do not take float32 copies yet.
        part: The part of a `step()` that this update replaces, or None for all of it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        masters: Masters | None = None,
        part: PartOfStep | None = None,
    ) -> None:
        super().__init__(optimizer, masters, part)
        self._family = _catalogue().FAMILIES[type(optimizer)]
        self._target = importlib.import_module("stepgraph_kernels").Target
        self._made: dict[str, Any] = {}
        self._clips = False
        self._pairs: list[tuple[Tensor, State]] = []
        self._latest: _Latest | None = None

    @property
    def recordable(self) -> bool:
        """Whether it consists of launches only, which a CUDA graph can record."""
        return bool(hasattr(_catalogue().update_class(self._family), "builds"))

    @property
    def tried(self) -> bool:
        """Whether the trial has passed, so that updates run in the kernels."""
        return bool(self._tried) and not self._failed

    def prepared(
        self, *, clipped: bool, grads: Mapping[int, Tensor] | None = None
    ) -> KernelLaunch | None:
        """Return the launch of this update, prepared; or None, with the reason in `refusal`.

        Args:
            clipped: Whether the launch will multiply the gradients and store the products.
            grads: Gradients to use instead of `.grad`, by `id` of their parameter.
        """
        latest = self._latest
        if latest is not None and grads is not None and self._is_current(latest, clipped, grads):
            latest.launch.set_hyper()
            return latest.launch
        self._clips, self._grads = clipped, grads
        try:
            launches = self._launches()
        except DoesNotFit as error:
            self.refusal = error.reason
            return None
        finally:
            self._grads = None
        self.refusal = None if launches else NotFused(Obstacle.NO_GRADIENT)
        for launch in launches if grads is not None else ():
            self._latest = _Latest(launch, clipped, grads, self._facts())
        return next(iter(launches), None)

    def _is_current(self, latest: _Latest, clipped: bool, grads: Mapping[int, Tensor]) -> bool:
        """Return whether only hyper-parameters may have changed since a launch was prepared."""
        optimizer = self._optimizer
        if latest.clipped != clipped or latest.grads is not grads or has_hooks(optimizer):
            return False
        if vars(optimizer).get("step") is not self._own_step:
            return False
        self._bind_states()
        return latest.facts == self._facts()

    def _facts(self) -> tuple[Any, ...]:
        """Return what the tables depend on: addresses, options, members of param groups."""
        groups = self._optimizer.param_groups
        addresses = [param.data_ptr() for param, _ in self._pairs]
        for name in self._names:
            held = [state.get(name) for _, state in self._pairs]
            addresses += [value.data_ptr() for value in held if value is not None]
        return (
            addresses,
            id(self._order),
            [list(map(id, group["params"])) for group in groups],
            [(self._family.rule(group), misfit_of_group(group)) for group in groups],
        )

    @property
    def _names(self) -> tuple[str, ...]:
        rules = (self._family.rule(group) for group in self._optimizer.param_groups)
        states = dict.fromkeys(name for rule in rules for name in rule.states)
        return (*states, *self._family.counters)

    def scaled(self, scaler: Any) -> None:
        """Run `scaler.step(optimizer)`; the device decides whether to skip the update.

        The scaler's own code runs, with an optimizer whose `step()` checks `found_inf` itself.
        """
        owner: Any = self._optimizer
        if not self.tried or has_hooks(owner):
            super().scaled(scaler)
            return

        def step() -> None:
            scaling = vars(owner)
            scale, found_inf = scaling.pop("grad_scale"), scaling.pop("found_inf")
            try:
                self._unless(found_inf, scale)
            finally:
                owner.grad_scale, owner.found_inf = scale, found_inf

        with replaced_step(owner, step), scaling_in_step(owner, supported=True):
            step_with_scaler(scaler, owner)

    def _unless(self, found_inf: Tensor, scale: Tensor | None) -> None:
        launch = self.prepared(clipped=scale is not None)
        if launch is not None:
            launch.run(None, scale, found_inf)
            self.note_step()
        elif not found_inf.item():
            self._eagerly(None if scale is None else scale.reciprocal())

    def _update(self, factor: Tensor | None) -> None:
        self._clips = factor is not None
        super()._update(factor)

    def _launches(self) -> list[Any]:
        self._pairs, self._latest = [], None
        targets = [target for several in super()._launches() for target in several]
        if not targets:
            return []
        launch = KernelLaunch(self._family, targets, self._optimizer.param_groups, self._made)
        if self._tried:
            try:
                launch.prepare(clipped=self._clips)
            except ValueError as error:
                raise DoesNotFit(Obstacle.KERNEL_REFUSES, str(error)) from error
        return [launch]

    def _fitting(
        self,
        row: int,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
    ) -> Any:
        """Return the targets of one param group."""
        names = self._family.rule(group).states
        for state in states:
            self._check_state(state, names)
        self._pairs += zip(params, states, strict=True)
        named = (f"parameter {i} of group {row}" for i in range(len(params)))
        found = zip(params, grads, states, named, strict=True)
        return [self._target(p.detach(), g, s, row, name=name) for p, g, s, name in found]

    def _for_part(self, part: PartOfStep) -> KernelUpdate:
        return KernelUpdate(self._optimizer, self.masters, part)

    def _check_state(self, state: State, names: Sequence[str]) -> None:
        counters = () if self._family.optional_counters else self._family.counters
        if any(state.get(name) is None for name in (*names, *counters)):
            raise DoesNotFit(Obstacle.NO_STATE)
        for name in counters:
            value = state[name]
            if not isinstance(value, Tensor) or value.dtype is not torch.float32:
                raise DoesNotFit(Obstacle.COUNTER_NOT_FLOAT32, name)

    def _misfit_of_group(self, group: Mapping[str, Any]) -> Obstacle | None:
        return misfit_of_group(group)


def kernel_misfit(optimizer: Optimizer, *, interpreted: bool = False) -> NotFused | None:
    """Return why no Triton kernel can replace `optimizer.step()`, or None.

    Args:
        optimizer: The optimizer.
        interpreted: Accept parameters on a CPU, for tests in Triton's interpreter.
    """
    try:
        families = _catalogue().FAMILIES
    except ImportError as error:
        return NotFused(Obstacle.NO_TRITON, str(error))
    if type(optimizer) not in families:
        return NotFused(Obstacle.NO_TRITON_KERNEL, type(optimizer).__name__)
    own_step = vars(optimizer).get("step")
    if own_step is not None and not is_wrapped_by_schedule(own_step):
        return NotFused(Obstacle.STEP_REPLACED)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    devices = {p.device for p in params}
    if len(devices) > 1:
        return NotFused(Obstacle.SEVERAL_DEVICES)
    if any(device.type != "cuda" for device in devices) and not interpreted:
        return NotFused(Obstacle.NOT_ON_GPU)
    if not {p.dtype for p in params} <= _DTYPES:
        return NotFused(Obstacle.DTYPE_WITHOUT_KERNEL)
    obstacle = next(filter(None, map(misfit_of_group, optimizer.param_groups)), None)
    return None if obstacle is None else NotFused(obstacle)


def misfit_of_group(group: Mapping[str, Any]) -> Obstacle | None:
    """Return which option of a param group prevents the kernels, or None."""
    if group.get("fused") is False or group.get("foreach"):
        return Obstacle.IMPLEMENTATION_CHOSEN
    return Obstacle.DIFFERENTIABLE if group.get("differentiable") else None


def _catalogue() -> Any:
    """Return the catalogue of kernels, imported only here because it imports triton."""
    return importlib.import_module("stepgraph_kernels.catalogue")


_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def _copy_of(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
