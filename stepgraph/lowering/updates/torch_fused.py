"""One call of torch's fused CPU kernels, and what each optimizer gives to such a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW

from stepgraph import torch_private
from stepgraph.lowering.updates.master_weights import Masters

Group = dict[str, Any]
State = dict[str, Any]


@dataclass
class Launch:
    """One call of a fused kernel of torch's.

    Attributes:
        kernel: Takes lists of tensors, then options.
        tensors: The lists: parameters, gradients, then state. Parameters and state are written.
        steps: The step counters, advanced with the update; the last list, or empty.
        options: Hyper-parameters as they are now.
        masters: Float32 copies to work on, or None to work on the tensors themselves.
    """

    kernel: Callable[..., Any]
    tensors: tuple[list[Tensor], ...]
    steps: list[Tensor]
    options: dict[str, Any]
    masters: Masters | None = None

    kind = "torch"

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
        torch_private.written([*chain(*tensors)])  # torch's fused kernels do not tell

    def copied(self) -> Launch:
        """Return the same call on copies of the same layout, with masters of their own."""
        tensors = tuple([t.detach().clone() for t in several] for several in self.tensors)
        masters = None if self.masters is None else Masters()
        steps = [t.clone() for t in self.steps]
        return Launch(self.kernel, tensors, steps, self.options, masters)

    def written(self) -> Iterable[Tensor]:
        """Return what it writes: gradients, too, where they are clipped."""
        return chain(*self.tensors, self.steps)


@dataclass(frozen=True)
class FusedCpuRule:
    """What an optimizer gives to a fused kernel.

    Attributes:
        kernel: From a param group to the kernel, a function of torch's.
        lists: How many lists of state the kernel takes; those that are not used are empty.
        names: From a param group to the names of those that are used, in the kernel's order.
        options: From a param group to the kernel's options, in the order of its signature.
        counts: Whether state has a step counter, the kernel's last list.
    """

    kernel: Callable[[Group], Callable[..., Any]]
    lists: int
    names: Callable[[Group], tuple[str, ...]]
    options: Callable[[Group], dict[str, Any]]
    counts: bool = True

    def launch(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> Launch:
        """Return the call for tensors of a param group.

        Raises:
            KeyError: State is missing.
        """
        used = [[_held(state, name) for state in states] for name in self.names(group)]
        unused: list[list[Tensor]] = [[] for _ in range(self.lists - len(used))]
        return Launch(
            self.kernel(group),
            (params, grads, *used, *unused),
            [_held(state, "step") for state in states] if self.counts else [],
            self.options(group),
        )


def _held(state: State, name: str) -> Any:
    value = state[name]
    if value is None:
        raise KeyError(name)
    return value


def _adam_kernel(group: Group) -> Callable[..., Any]:
    return torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_


def _adam_names(group: Group) -> tuple[str, ...]:
    averages = "exp_avg", "exp_avg_sq"
    return (*averages, "max_exp_avg_sq") if group["amsgrad"] else averages


def _adam(group: Group) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "amsgrad": group["amsgrad"],
        "maximize": group["maximize"],
    }


def _sgd_names(group: Group) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] else ()


def _sgd(group: Group) -> dict[str, Any]:
    return {
        "weight_decay": group["weight_decay"],
        "momentum": group["momentum"],
        "lr": group["lr"],
        "dampening": group["dampening"],
        "nesterov": group["nesterov"],
        "maximize": group["maximize"],
        "is_first_step": False,
    }


def _adagrad(group: Group) -> dict[str, Any]:
    return {
        "lr": group["lr"],
        "lr_decay": group["lr_decay"],
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "maximize": group["maximize"],
    }


_ADAM = FusedCpuRule(_adam_kernel, 3, _adam_names, _adam)

RULES: Mapping[type, FusedCpuRule] = {
    Adam: _ADAM,
    AdamW: _ADAM,
    SGD: FusedCpuRule(lambda _: torch._fused_sgd_, 1, _sgd_names, _sgd, counts=False),
    Adagrad: FusedCpuRule(lambda _: torch._fused_adagrad_, 1, lambda _: ("sum",), _adagrad),
}
"""By an optimizer's class."""
