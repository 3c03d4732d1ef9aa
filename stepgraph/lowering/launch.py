"""One call of a fused CPU kernel: which tensors and options, in torch's kernel or in ours."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW

from stepgraph import torch_private
from stepgraph.lowering.compiled import CompiledKernel
from stepgraph.lowering.masters import Masters

Group = dict[str, Any]
State = dict[str, Any]


@dataclass
class Launch:
    """One call of a fused kernel.

    Attributes:
        kernel: Torch's: takes lists of tensors, then options.
        tensors: The lists: parameters, gradients, then state. Parameters and state are written.
        steps: The step counters, advanced with the update; the last list, or empty.
        options: Hyper-parameters as they are now.
        masters: Float32 copies to work on, or None to work on the tensors themselves.
        compiled: Our kernel, where it takes these tensors; else torch's runs.
    """

    kernel: Callable[..., Any]
    tensors: tuple[list[Tensor], ...]
    steps: list[Tensor]
    options: dict[str, Any]
    masters: Masters | None = None
    compiled: CompiledKernel | None = None

    @property
    def kind(self) -> str:
        """Whose kernel runs."""
        return "torch" if self.compiled is None else "compiled"

    def run(self, factor: Tensor | None) -> None:
        """Advance the counters and update, from gradients multiplied by `factor`."""
        if self.masters is not None:
            self._run_on_masters(self.masters, factor)
        elif self.compiled is not None:
            self.compiled(self.kernel, self.tensors, self.steps, self.options, factor)
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
        return Launch(self.kernel, tensors, steps, self.options, masters, self.compiled)

    def written(self) -> Iterable[Tensor]:
        """Return what it writes: gradients, too, where they are clipped."""
        return chain(*self.tensors, self.steps)


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


LAUNCHES: Mapping[type, Callable[..., Launch]] = {
    Adam: _adam,
    AdamW: _adam,
    SGD: _sgd,
    Adagrad: _adagrad,
}
"""From an optimizer's class to a function that makes a launch: `(group, params, grads, states)`.

It raises `KeyError` where state is missing.
"""
