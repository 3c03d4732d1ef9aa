"""The launches of a Muon step: gather, orthogonalise, apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.muon.kernel import apply_prepare, apply_update
from stepgraph_kernels.muon.newton_schulz import newton_schulz
from stepgraph_kernels.muon.reference import lr_ratio
from stepgraph_kernels.spec import Family, GradientsAfter, Group, Rule, Scalar, Target, Tuning


def _nothing(param: Tensor, grad: Tensor, state: dict[str, Tensor], group: Group) -> None:
    raise NotImplementedError("half of Muon has no reference of its own")


def _apply_hyper(group: Group) -> tuple[Scalar, ...]:
    return (group["lr"], group["weight_decay"], group["lr_ratio"])


_APPLY_RULE = Rule(apply_update, ())
APPLY = Family(
    name="Muon",
    prepare=apply_prepare,
    hyper_names=("lr", "weight_decay", "lr_ratio"),
    coefficients=2,
    counters=(),
    rule=lambda group: _APPLY_RULE,
    hyper=_apply_hyper,
    initial_state=lambda param, group: {},
    reference=_nothing,
)


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape and group, orthogonalised together.

    Attributes:
        members: Their places among the targets.
        group: Their group.
        updates: `[members, rows, columns]`, bf16: what is orthogonalised.
        directions: The same, orthogonalised.
    """

    members: list[int]
    group: int
    updates: Tensor
    directions: Tensor


class MuonUpdate:
    """One Muon update of any number of matrices; used like `MultiTensorUpdate`.

    Two launches gather the momentum of all matrices, batched products orthogonalise those of equal
    shape together, two launches apply the result. Nothing waits for the device.

    Attributes:
        norm: As in `MultiTensorUpdate`.
        skipped: As in `MultiTensorUpdate`.
        max_norm: As in `MultiTensorUpdate`.
        group_count: As in `MultiTensorUpdate`.
    """

    def __init__(
        self,
        family: Family,
        targets: Sequence[Target],
        groups: Sequence[Group],
        *,
        clip: bool = False,
        check_finite: bool = False,
        grads: GradientsAfter = "keep",
        average_weight: float = 0.0,
        tuning: Tuning | None = None,
    ) -> None:
        """Take the arguments of `MultiTensorUpdate`.

        Raises:
            ValueError: Also if a parameter is no matrix, or not contiguous.
        """
        self._check(family, targets)
        self._shapes = _shapes(targets)
        self._stacks = _make_stacks(targets)
        self._groups = list(groups)
        self.group_count = len(groups)
        self._gather = MultiTensorUpdate(
            family,
            self._gathered(targets),
            groups,
            clip=clip,
            check_finite=check_finite,
            grads=grads,
            tuning=tuning,
        )
        self._apply = MultiTensorUpdate(
            APPLY,
            self._applied(targets),
            self._apply_groups(groups),
            average_weight=average_weight,
            tuning=tuning,
        )
        self._family = family
        self._again = {
            "clip": clip,
            "check_finite": check_finite,
            "grads": grads,
            "average_weight": average_weight,
            "tuning": tuning,
        }
        self.norm, self.skipped = self._gather.norm, self._gather.skipped
        self.max_norm = self._gather.max_norm

    def rebind(self, targets: Sequence[Target], groups: Sequence[Group]) -> bool:
        """Take other tensors of the same shapes and groups, or start anew with other ones."""
        self._check(self._family, targets)
        if _shapes(targets) != self._shapes:
            max_norm = self.max_norm
            self.__init__(self._family, targets, groups, **self._again)  # type: ignore[misc]
            self.max_norm.copy_(max_norm)
            return True
        moved = self._gather.rebind(self._gathered(targets), groups)
        return self._apply.rebind(self._applied(targets), self._apply_groups(groups)) or moved

    def set_hyper(self, groups: Sequence[Group], *, average_weight: float | None = None) -> None:
        """Upload hyper-parameters that changed."""
        self._groups = list(groups)
        self._gather.set_hyper(groups)
        self._apply.set_hyper(self._apply_groups(groups), average_weight=average_weight)

    def set_max_norm(self, max_norm: float) -> None:
        """Set what the next launch clips to."""
        self._gather.set_max_norm(max_norm)

    def launch(self, *, scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
        """Update every matrix; see `MultiTensorUpdate.launch`."""
        self._gather.launch(scale=scale, found_inf=found_inf)
        for stack in self._stacks:
            group = self._groups[stack.group]
            directions = newton_schulz(
                stack.updates,
                coefficients=group["ns_coefficients"],
                steps=group["ns_steps"],
                eps=group["eps"],
            )
            stack.directions.copy_(directions)
        self._apply.launch(found_inf=self._gather.skipped)

    def _gathered(self, targets: Sequence[Target]) -> list[Target]:
        return [
            replace(targets[member], param=stack.updates[place], shadow=None, average=None)
            for stack in self._stacks
            for place, member in enumerate(stack.members)
        ]

    def _applied(self, targets: Sequence[Target]) -> list[Target]:
        return [
            replace(targets[member], grad=stack.directions[place], state={}, group=row)
            for row, stack in enumerate(self._stacks)
            for place, member in enumerate(stack.members)
        ]

    def _apply_groups(self, groups: Sequence[Group]) -> list[Group]:
        """A row for each stack: the learning rate depends on the shape."""
        return [
            {
                **groups[stack.group],
                "lr_ratio": lr_ratio(stack.updates.shape[1:], groups[stack.group]),
            }
            for stack in self._stacks
        ]

    def _check(self, family: Family, targets: Sequence[Target]) -> None:
        for target in targets:
            if target.param.dim() != 2 or not target.param.is_contiguous():
                raise ValueError(
                    f"{family.name} kernel cannot take {target.name}: shape "
                    f"{list(target.param.shape)}, strides {list(target.param.stride())}; "
                    "it must be a contiguous matrix"
                )


def _shapes(targets: Sequence[Target]) -> list[tuple[torch.Size, int]]:
    return [(target.param.shape, target.group) for target in targets]


def _make_stacks(targets: Sequence[Target]) -> list[_Stack]:
    members: dict[tuple[torch.Size, int], list[int]] = {}
    for index, key in enumerate(_shapes(targets)):
        members.setdefault(key, []).append(index)
    stacks = []
    for (shape, group), places in members.items():
        like = targets[places[0]].param
        updates = torch.zeros(
            len(places), *shape, dtype=torch.bfloat16, device=like.device, requires_grad=False
        )
        stacks.append(_Stack(places, group, updates, torch.zeros_like(updates)))
    return stacks
