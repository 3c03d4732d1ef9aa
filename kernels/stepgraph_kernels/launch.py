"""Two launches for a whole update: checks, hyper-parameters, and the calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from stepgraph_kernels.constants import PARTIALS, WIDTH, measure_constants, sweep_constants
from stepgraph_kernels.decide import decide_kernel
from stepgraph_kernels.device_tables import Tables, build_tables, overwrite
from stepgraph_kernels.measure import measure_kernel
from stepgraph_kernels.memory import check_overlaps, check_targets
from stepgraph_kernels.spec import (
    Family,
    GradientsAfter,
    Group,
    Rule,
    Scalar,
    Target,
    Tuning,
)
from stepgraph_kernels.sweep import sweep_kernel
from stepgraph_kernels.table import Bucket, address_rows, bucket_of, grad_kind


class MultiTensorUpdate:
    """One optimizer's update of any number of tensors.

    The first launch takes the norm, checks, and prepares coefficients; the second does everything
    else in one pass (one launch for each combination of dtypes, alignment and structural options).
    Nothing waits for the device and all buffers persist, so `launch` may be captured in a CUDA
    graph; `set_hyper` and `set_max_norm` write what the next replay reads.

    Example::

        update = MultiTensorUpdate(ADAM, targets, optimizer.param_groups, clip=True)
        update.set_max_norm(1.0)
        update.launch()

    Attributes:
        norm: `[]` float32, the unscaled norm of all gradients (with `clip` or `check_finite`).
        skipped: `[]` float32, 1 if the last update was skipped, else 0.
        max_norm: `[]` float32, what `clip` clips to.
        group_count: How many groups it was made for; for another number make another update.
        builds: How often tables were built. A CUDA graph of `launch` is valid while it stays.
    """

    builds = 0

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
        """Check the targets and build the tables.

        Args:
            family: The optimizer.
            targets: At least one; all on one device. Kept alive as long as this object.
            groups: The `param_groups` that `Target.group` counts.
            clip: Scale gradients so that their norm is at most `max_norm`.
            check_finite: Skip the update if a gradient has an inf or a nan, as a `GradScaler` does.
            grads: What becomes of the gradients in the same pass: left alone, zeroed, or replaced
                by the unscaled and clipped ones.
            average_weight: Weight of the new parameter in the averages, 1 - decay.
            tuning: Speed choices.

        Raises:
            ValueError: If a tensor cannot be taken; see `check_targets`.
        """
        if not targets:
            raise ValueError(f"{family.name} kernel needs at least one parameter with a gradient")
        self.family = family
        self.tuning = tuning or Tuning()
        self.clip = clip
        self.check_finite = check_finite
        self.grads: GradientsAfter = grads
        device = targets[0].param.device
        self._device = device
        self._verdict = torch.zeros(4, dtype=torch.float32, device=device)
        self.norm, self.skipped = self._verdict[0], self._verdict[2]
        self.max_norm = torch.full((), float("inf"), dtype=torch.float32, device=device)
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._zero = torch.zeros((), dtype=torch.float32, device=device)
        self._partial_square = torch.zeros(PARTIALS, dtype=torch.float32, device=device)
        self._partial_broken = torch.zeros(PARTIALS, dtype=torch.int32, device=device)
        self._arrivals = torch.zeros(1, dtype=torch.int32, device=device)
        self._hyper = torch.zeros(
            len(groups), 2 + len(family.hyper_names), dtype=torch.float64, device=device
        )
        self.group_count = len(groups)
        self._hyper_values: list[tuple[Any, ...]] = []
        self._addresses: list[list[int]] = []
        self._layout: object = None
        self._variant: object = None
        self._stand_ins: list[Tensor] = []
        self._tables: Tables
        self.rebind(targets, groups)
        self.set_hyper(groups, average_weight=average_weight)

    def rebind(self, targets: Sequence[Target], groups: Sequence[Group]) -> bool:
        """Take other tensors, or the same ones at other addresses; cheap if nothing moved.

        Not inside a CUDA graph: it copies to the device. Tensors that only moved cost one copy of
        addresses; another layout, or other tensors, cost new tables.

        Returns:
            Whether anything had moved.
        """
        rules = self._rules(targets, groups)
        layout = [_layout(target, rule) for target, rule in zip(targets, rules, strict=True)]
        if layout != self._layout:
            check_targets(self.family, rules, targets)
        if len(self._stand_ins) != len(targets):
            self._stand_ins = self._stand_in_counters(len(targets))
        addresses = address_rows(self.family, rules, targets, self._stand_ins)
        if addresses == self._addresses and layout == self._layout:
            return False
        check_overlaps(self.family, rules, targets)
        buckets = [
            bucket_of(target, rule, self.grads, self.tuning)
            for target, rule in zip(targets, rules, strict=True)
        ]
        variant = (buckets, [grad_kind(target) for target in targets])
        if layout == self._layout and variant == self._variant:
            overwrite(addresses, into=self._tables.addresses)
        else:
            self._tables = self._build(targets, buckets, addresses)
        self.targets, self._addresses = list(targets), addresses
        self._layout, self._variant = layout, variant
        self._written = _written(rules, targets, self.grads)
        return True

    def set_hyper(self, groups: Sequence[Group], *, average_weight: float | None = None) -> None:
        """Upload hyper-parameters that changed; those that are tensors stay on the device."""
        if average_weight is not None:
            self._average_weight = average_weight
        for row, group in enumerate(groups):
            sign = -1.0 if group.get("maximize", False) else 1.0
            values = (sign, self._average_weight, *self.family.hyper(group))
            if row < len(self._hyper_values) and _unchanged(values, self._hyper_values[row]):
                continue
            self._upload_row(row, values)
            self._hyper_values[row : row + 1] = [values]

    def set_max_norm(self, max_norm: float) -> None:
        """Set what the next launch clips to."""
        self.max_norm.fill_(max_norm)

    def launch(self, *, scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
        """Update every target.

        Args:
            scale: What the loss was multiplied by, one float32 on the device, or None for 1.
            found_inf: Not zero: skip this update, as after `GradScaler.unscale_`. Or None.
        """
        with _on(self._device):
            self._launch(scale, found_inf)
        torch.autograd.graph.increment_version(self._written)

    def _rules(self, targets: Sequence[Target], groups: Sequence[Group]) -> list[Rule]:
        rules = [self.family.rule(groups[target.group]) for target in targets]
        if any(rule.factored for rule in rules):
            raise ValueError(f"{self.family.name} has states of other shapes: use AdafactorUpdate")
        return rules

    def _launch(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        self._decide(scale, found_inf)
        for bucket, chunks in zip(self._tables.buckets, self._tables.ranges, strict=True):
            if chunks[1] and bucket.rule.measure is not None:
                self._measure(bucket, *chunks)
            if chunks[1]:
                self._sweep(bucket, *chunks)

    def _decide(
        self, scale: Tensor | None, found_inf: Tensor | None, *, sums: Tensor | None = None
    ) -> None:
        tables, tensors = self._tables, len(self.targets)
        chunks = tables.chunk_tensor.numel() if sums is None else sums.shape[1]
        work = chunks if self.clip or self.check_finite else triton.cdiv(tensors, WIDTH)
        programs = max(1, min(PARTIALS, work))
        decide_kernel[(programs,)](
            tables.addresses,
            tables.grad_kind,
            tables.chunk_tensor,
            tables.chunk_offset,
            tables.chunk_length,
            self._partial_square,
            self._partial_broken,
            self._arrivals,
            self._one if scale is None else scale,
            self._zero if found_inf is None else found_inf,
            self.max_norm,
            self._verdict,
            tables.tensor_group,
            self._hyper,
            tables.coefficients,
            self._zero if sums is None else sums,
            tensors,
            chunks,
            PREPARE=self.family.prepare,
            HYPERS=self._hyper.shape[1],
            COUNTERS=len(self.family.counters),
            COEFFICIENTS=self.family.coefficients,
            CLIP=self.clip,
            CHECK=self.check_finite,
            KINDS=tables.kinds,
            BLOCK=self.tuning.block,
            WIDTH=WIDTH,
            PARTIALS=PARTIALS,
            SUMMED=sums is not None,
            num_warps=self._warps(self.tuning.reduce_threads),
        )

    def _measure(self, bucket: Bucket, first: int, count: int) -> None:
        tables, norms = self._tables, self._tables.norms
        measure_kernel[(count,)](
            tables.addresses,
            tables.chunk_tensor,
            tables.chunk_offset,
            tables.chunk_length,
            norms.chunk_place,
            norms.tensor_place,
            norms.tensor_chunks,
            norms.arrivals,
            norms.partials,
            tables.coefficients,
            self._verdict,
            len(self.targets),
            tables.chunk_tensor.numel(),
            first,
            **measure_constants(self.family, bucket, self.tuning),
            num_warps=self._warps(self.tuning.threads),
            **_FUSED_MULTIPLY_ADD,
        )

    def _sweep(self, bucket: Bucket, first: int, count: int) -> None:
        tables = self._tables
        sweep_kernel[(count,)](
            tables.addresses,
            tables.chunk_tensor,
            tables.chunk_offset,
            tables.chunk_length,
            tables.coefficients,
            self._verdict,
            len(self.targets),
            first,
            **sweep_constants(self.family, bucket, self.tuning),
            num_warps=self._warps(self.tuning.threads),
            **_FUSED_MULTIPLY_ADD,
        )

    def _warps(self, threads: int) -> int:
        if self._device.type != "cuda":
            return 4  # the interpreter has none
        return max(1, threads // torch.cuda.get_device_properties(self._device).warp_size)

    def _build(
        self, targets: Sequence[Target], buckets: Sequence[Bucket], addresses: list[list[int]]
    ) -> Tables:
        self.builds += 1
        return build_tables(
            self.family, targets, buckets, addresses, tuning=self.tuning, device=self._device
        )

    def _stand_in_counters(self, tensors: int) -> list[Tensor]:
        """For states without counters: a count that is past the first update."""
        ones = torch.ones(tensors, dtype=torch.float32, device=self._device)
        return list(ones.unbind())

    def _upload_row(self, row: int, values: tuple[Scalar, ...]) -> None:
        numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        overwrite(numbers, into=self._hyper[row])
        for column, value in enumerate(values):
            if isinstance(value, Tensor):
                self._hyper[row, column].copy_(value.detach().reshape(()), non_blocking=True)


# Contraction is triton's default up to 3.9 and not after; we want it, and say so.
_FUSED_MULTIPLY_ADD: dict[str, Any] = {"enable_fp_fusion": True}


def _layout(target: Target, rule: Rule) -> tuple[object, ...]:
    """All that the tables depend on besides addresses."""
    tensors = [
        target.param,
        target.grad,
        *(target.state[name] for name in rule.states if name in target.state),
    ]
    tensors += [tensor for tensor in (target.shadow, target.average) if tensor is not None]
    described = tuple(
        (t.dtype, t.device, t.shape, t.stride() if t.layout is torch.strided else None)
        for t in tensors
    )
    missing = tuple(name for name in rule.states if name not in target.state)
    return (rule, target.group, described, missing)


def _written(
    rules: Sequence[Rule], targets: Sequence[Target], grads: GradientsAfter
) -> list[Tensor]:
    """What an update changes behind autograd's back, so that it can be told."""
    written: list[Tensor | None] = []
    for rule, target in zip(rules, targets, strict=True):
        written += [target.param, target.shadow, target.average]
        written += [target.state[name] for name in rule.states]
        written += [target.grad] if grads != "keep" else []
    return [tensor for tensor in written if tensor is not None and not tensor.is_inference()]


def _unchanged(values: Sequence[Scalar], before: Sequence[Scalar]) -> bool:
    """A tensor may have changed in place: only plain numbers are known to be the same."""
    return not any(isinstance(value, Tensor) for value in values) and values == before


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device of the tensors, not on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
