"""`fuse(optimizer)`: a fused `step()` for an optimizer that exists already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from triton import knobs

from stepgraph_kernels.catalogue import FAMILIES, Update, update_class
from stepgraph_kernels.spec import Family, GradientsAfter, Group, State, Target, Tuning

Implementation = Literal["triton", "torch fused", "torch"]


@dataclass(frozen=True)
class Fusion:
    """What `fuse` did; prints itself.

    Attributes:
        optimizer: The optimizer's class.
        implementation: `"triton"`: our kernels. `"torch fused"`: torch's fused implementation
            (`fused=True`). `"torch"`: the optimizer's own step, unchanged.
        why: Why this one.
    """

    optimizer: str
    implementation: Implementation
    why: str

    def __str__(self) -> str:
        return f"{self.optimizer}.step(): {self.implementation} ({self.why})"


def fuse(
    optimizer: Optimizer,
    *,
    implementation: Implementation | None = None,
    tuning: Tuning | None = None,
) -> Fusion:
    """Give an existing optimizer a fused `step()`.

    State names, shapes and `state_dict` stay torch's, in both directions; hooks, schedulers,
    closures, parameter groups that are added later, and `GradScaler` work as before. Counters live
    on the device of their parameter, as with torch's own `fused=True`. A copy or a pickle of the
    optimizer is not fused.

    Args:
        optimizer: Any class in the catalogue. Its `step` is replaced on this instance.
        implementation: None chooses: the kernels on a GPU; on a CPU torch's fused implementation
            where there is one, else the optimizer's own step.
        tuning: Speed choices of the kernels.

    Returns:
        What was chosen, and why. Print it.

    Raises:
        ValueError: If there is no kernel for this class or for an option in use. `step()` raises
            it for a tensor that the kernels cannot take, before anything is updated.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> print(fuse(optimizer))
        AdamW.step(): torch fused (the parameters are on a CPU)
    """
    family = _family(optimizer)
    device = _device(optimizer)
    name = type(optimizer).__name__
    if implementation is None:
        implementation, why = _choice(optimizer, device)
    else:
        why = "as asked"
    if implementation == "triton":
        if device.type == "cpu" and not knobs.runtime.interpret:
            raise ValueError(
                f"{name}: its parameters are on a CPU; the kernels run on a GPU, or slowly in "
                "triton's interpreter with TRITON_INTERPRET=1 set before triton is imported"
            )
        _refuse_options(optimizer)
        _replace_step(optimizer, _KernelStep(family, tuning))
    elif implementation == "torch fused":
        _switch_on(optimizer)
    return Fusion(name, implementation, why)


class _KernelStep:
    """Runs an optimizer's update with the kernels; owns tables, never the state."""

    def __init__(self, family: Family, tuning: Tuning | None) -> None:
        self._family = family
        self._tuning = tuning
        self._updates: dict[GradientsAfter, Update] = {}
        # counts of updates that torch's state has no place for, each with the state it belongs to
        self._private: dict[Tensor, tuple[State, Tensor]] = {}

    def __call__(self, optimizer: Optimizer) -> None:
        targets = self._targets(optimizer)
        if not targets:
            return
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        # torch leaves unscaled gradients behind, whether unscale_ or the fused step did it
        update = self._update(targets, optimizer, "keep" if scale is None else "clipped")
        update.launch(scale=scale, found_inf=found_inf)

    def forget_unused_buffers(self, state_dict: dict[str, Any], optimizer: Optimizer) -> None:
        """Leave out buffers that only skipped updates have seen: torch has none at that point."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for index, param in enumerate(params):
            held = self._private.get(param)
            if held is None or optimizer.state.get(param) is not held[0]:
                continue
            if held[1].item() == 0 and index in state_dict["state"]:
                state_dict["state"][index] = {}

    def _update(self, targets: list[Target], optimizer: Optimizer, grads: GradientsAfter) -> Update:
        groups: Sequence[Group] = optimizer.param_groups
        update = self._updates.get(grads)
        if update is None or update.group_count != len(groups):
            update = update_class(self._family)(
                self._family, targets, groups, grads=grads, tuning=self._tuning
            )
            self._updates[grads] = update
        else:
            update.rebind(targets, groups)
            update.set_hyper(groups)
        return update

    def _targets(self, optimizer: Optimizer) -> list[Target]:
        targets = []
        for row, group in enumerate(optimizer.param_groups):
            for index, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                name = f"parameter {index} of group {row}, shape {list(param.shape)}"
                state = self._state(optimizer, param, group)
                targets.append(Target(param.detach(), param.grad, state, row, name=name))
        return targets

    def _state(self, optimizer: Optimizer, param: Tensor, group: Group) -> State:
        """The optimizer's own state, made if it is missing; counters on the parameter's device."""
        state: State = optimizer.state[param]
        names = self._family.rule(group).states
        if self._family.optional_counters:
            return self._state_with_private_counter(state, param, group, names)
        complete = {**optimizer.defaults, **group}  # Adagrad keeps its initial value apart
        if not state:
            state.update(self._family.initial_state(param.detach(), complete))
        for name in self._family.counters:
            state[name] = _counter(state[name], param.device)
        for name in names:
            if name not in state:  # an option that was switched on later, as torch allows
                state[name] = self._family.initial_state(param.detach(), complete)[name]
        return state

    def _state_with_private_counter(
        self, state: State, param: Tensor, group: Group, names: tuple[str, ...]
    ) -> State:
        if any(state.get(name) is None for name in names):
            fresh = self._family.initial_state(param.detach(), group)
            self._private[param] = (state, fresh.pop(self._family.counters[0]))
            state.update(fresh)
        held = self._private.get(param)
        if held is None or held[0] is not state:
            return state
        return {**state, self._family.counters[0]: held[1]}


def _family(optimizer: Optimizer) -> Family:
    family = FAMILIES.get(type(optimizer))
    if family is None:
        known = ", ".join(sorted(kind.__name__ for kind in FAMILIES))
        raise ValueError(
            f"no kernel for {type(optimizer).__module__}.{type(optimizer).__qualname__}; "
            f"there are kernels for {known}, and not for their subclasses"
        )
    return family


def _device(optimizer: Optimizer) -> torch.device:
    devices: set[torch.device] = {
        p.device for group in optimizer.param_groups for p in group["params"]
    }
    if len(devices) != 1:
        listed = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"{type(optimizer).__name__}: parameters on several devices: {listed}")
    return devices.pop()


def _choice(optimizer: Optimizer, device: torch.device) -> tuple[Implementation, str]:
    if device.type == "cuda":
        return "triton", "the parameters are on a GPU"
    if device.type != "cpu":
        return "torch", f"there are no kernels for {device.type}"
    if all("fused" in group for group in optimizer.param_groups):
        return "torch fused", "the parameters are on a CPU"
    return "torch", "the parameters are on a CPU, and torch has no fused implementation"


def _refuse_options(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            raise ValueError(
                f"{type(optimizer).__name__}: differentiable=True; the kernels record no gradient"
            )


def _switch_on(optimizer: Optimizer) -> None:
    """Do what torch's constructors do for `fused=True`."""
    if any("fused" not in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__}: torch has no fused implementation of it")
    _refuse_options(optimizer)
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False
        for param in group["params"]:
            state = optimizer.state.get(param)
            if state and "step" in state:
                state["step"] = _counter(state["step"], param.device)
    optimizer.defaults["fused"], optimizer.defaults["foreach"] = True, False
    optimizer._need_device_dtype_check_for_fused = True  # type: ignore[attr-defined]
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]


def _replace_step(optimizer: Optimizer, run: _KernelStep) -> None:
    """Put a step on the instance; it runs hooks and shows schedulers that it was called."""

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            run(self)
        self._opt_called = True  # type: ignore[attr-defined]  # a scheduler looks for it
        return loss

    hooked = Optimizer.profile_hook_step(step)
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        hooked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = MethodType(hooked, optimizer)  # type: ignore[method-assign]
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    if run._family.optional_counters:
        optimizer.register_state_dict_post_hook(
            lambda self, state_dict: run.forget_unused_buffers(state_dict, self)
        )


def _counter(counter: Any, device: torch.device) -> Tensor:
    """A counter as the kernels need it; old checkpoints have plain numbers."""
    return torch.as_tensor(counter, dtype=torch.float32, device=device)
