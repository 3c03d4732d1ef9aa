"""One call of torch's fused CPU kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from stepgraph import torch_private
from stepgraph.lowering.updates.master_weights import Masters
from stepgraph.optimizer_facts import FUSED_CPU_KERNELS, FusedCpuRule, Group

State = dict[str, Any]

_KERNELS = {name: getattr(torch, f"_fused_{name}_") for name in FUSED_CPU_KERNELS}
"""Torch's kernels by name."""


@dataclass
class Launch:
    """One call of one of torch's fused kernels.

    Attributes:
        kernel: The kernel: takes lists of tensors, then options.
        tensors: The lists: parameters, gradients, then state. Parameters and state are written.
        steps: The step counters, which the update increments; passed last. May be empty.
        options: The hyper-parameters of this update.
        masters: Float32 copies to update, or None to update the tensors themselves.
    """

    kernel: Callable[..., Any]
    tensors: tuple[list[Tensor], ...]
    steps: list[Tensor]
    options: dict[str, Any]
    masters: Masters | None = None

    kind = "torch"

    def run(self, factor: Tensor | None) -> None:
        """Increment the counters and update, from gradients multiplied by `factor`."""
        if self.masters is not None:
            self._run_on_masters(self.masters, factor)
        elif factor is not None and factor.dtype is torch.float32:
            # the kernels divide by a float32 and store the quotient as the gradient
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
        torch_private.written([*chain(*tensors)])  # torch's fused kernels do not bump versions

    def copied(self) -> Launch:
        """Return the same call on copies with the same strides, with separate masters."""
        tensors = tuple([t.detach().clone() for t in several] for several in self.tensors)
        masters = None if self.masters is None else Masters()
        steps = [t.clone() for t in self.steps]
        return Launch(self.kernel, tensors, steps, self.options, masters)

    def written(self) -> Iterable[Tensor]:
        """Return the tensors that it writes, and the gradients, written where they are clipped."""
        return chain(*self.tensors, self.steps)


def launch_of(
    rule: FusedCpuRule,
    group: Group,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
) -> Launch:
    """Return the call for tensors of a param group.

    Args:
        rule: The signature of the kernel.
        group: The param group.
        params: Parameters. Written when the call runs.
        grads: Their gradients.
        states: Their states. Written when the call runs.

    Raises:
        KeyError: A state tensor is missing.
    """
    used = [[_state_tensor(state, name) for state in states] for name in rule.names(group)]
    unused: list[list[Tensor]] = [[] for _ in range(rule.lists - len(used))]
    return Launch(
        _KERNELS[rule.kernel(group)],
        (params, grads, *used, *unused),
        [_state_tensor(state, "step") for state in states] if rule.counts else [],
        rule.options(group),
    )


def _state_tensor(state: State, name: str) -> Any:
    value = state[name]
    if value is None:
        raise KeyError(name)
    return value
