"""The launches of an Adafactor step: sums, decide, fold, size, apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stepgraph_kernels.adafactor.kernel import apply_kernel, fold_kernel, size_kernel, sums_kernel
from stepgraph_kernels.adafactor.tiles import Class, Tiling, tiling
from stepgraph_kernels.constants import TYPES, WIDTH
from stepgraph_kernels.device_tables import Tables, uploader
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.spec import Group, Rule, Target
from stepgraph_kernels.table import Bucket

FACTORED = Rule(None, ("row_var", "col_var"), factored=True)
VECTOR = Rule(None, ("variance",), factored=True)


def rule_of(param: Tensor) -> Rule:
    """Which states a parameter has."""
    return FACTORED if param.dim() > 1 else VECTOR


class AdafactorUpdate(MultiTensorUpdate):
    """One Adafactor update of any number of tensors; used like `MultiTensorUpdate`.

    Five launches, four of them again for each combination of dtypes, alignment and shape of a tile:
    their number does not depend on the number of tensors. Nothing waits for the device.
    """

    def set_hyper(self, groups: Sequence[Group], *, average_weight: float | None = None) -> None:
        """Upload hyper-parameters that changed, the default of `eps[0]` filled in."""
        super().set_hyper(resolved(groups, self.targets), average_weight=average_weight)

    def _rules(self, targets: Sequence[Target], groups: Sequence[Group]) -> list[Rule]:
        return [rule_of(target.param) for target in targets]

    def _build(
        self, targets: Sequence[Target], buckets: Sequence[Bucket], addresses: list[list[int]]
    ) -> Tables:
        tiles = tiling([target.param.shape for target in targets], buckets, self.tuning)
        put = uploader(self._device)
        self._tiling: Tiling = tiles
        self._shapes = put(tiles.shapes, torch.int64)
        self._tiles = put(tiles.tiles, torch.int64)
        self._folds = put(tiles.folds, torch.int64)
        self._scratch = torch.zeros(tiles.scratch, dtype=torch.float32, device=self._device)
        self._sums = torch.zeros(2, self._tiles.shape[1], dtype=torch.float32, device=self._device)
        return super()._build(targets, buckets, addresses)

    def _launch(self, scale: Tensor | None, found_inf: Tensor | None) -> None:
        plan, tables = self._tiling, self._tables
        tiles, folds = (self._shapes, self._tiles, self._scratch), (self._shapes, self._folds)
        tail = (tables.coefficients, self._verdict)
        for kind, where in zip(plan.classes, plan.tile_ranges, strict=True):
            self._run(sums_kernel, sums_constants(kind), where, *tiles, self._sums)
        self._decide(scale, found_inf, sums=self._sums)
        for kind, where in zip(plan.classes, plan.fold_ranges, strict=True):
            self._run(fold_kernel, fold_constants(kind), where, *folds, self._scratch, *tail)
        for kind, where in zip(plan.classes, plan.tile_ranges, strict=True):
            arrivals = tables.norms.arrivals
            operands = (*tiles, self._sums, arrivals, *tail)
            self._run(size_kernel, size_constants(kind), where, *operands)
        for kind, where in zip(plan.classes, plan.tile_ranges, strict=True):
            self._run(apply_kernel, apply_constants(kind), where, *tiles, *tail)

    def _run(
        self, kernel: Any, constants: dict[str, Any], where: tuple[int, int], *operands: Tensor
    ) -> None:
        first, programs = where
        if programs:
            kernel[(programs,)](
                self._tables.addresses,
                *operands,
                len(self.targets),
                operands[1].shape[1],
                first,
                **constants,
                num_warps=self._warps(self.tuning.threads),
                enable_fp_fusion=True,
            )


def resolved(groups: Sequence[Group], targets: Sequence[Target]) -> list[Group]:
    """Fill in `eps[0]` as torch does: by the first parameter of a group that has a gradient."""
    dtypes: dict[int, torch.dtype] = {}
    for target in targets:
        dtypes.setdefault(target.group, target.param.dtype)
    filled: list[Group] = []
    for row, group in enumerate(groups):
        eps1, eps2 = group["eps"]
        if eps1 is None:
            eps1 = torch.finfo(dtypes.get(row, torch.float32)).eps
        filled.append({**group, "eps": (eps1, eps2)})
    return filled


def sums_constants(kind: Class) -> dict[str, Any]:
    """The compile-time arguments of `sums_kernel`."""
    return {
        "GRAD": TYPES[kind.bucket.dtypes[1]],
        "GRAD_ALIGN": kind.bucket.alignments[1],
        **_tile(kind),
    }


def fold_constants(kind: Class) -> dict[str, Any]:
    """The compile-time arguments of `fold_kernel`."""
    tile = kind.tile
    return {
        "STATE": TYPES[kind.bucket.dtypes[2]],
        "MATRICES": tile.matrices,
        "COLUMNS": tile.columns,
        "SPAN": tile.span,
        "FOLD_ROWS": tile.fold_rows,
        "FOLD_COLUMNS": tile.fold_columns,
        "VECTOR": tile.vector,
    }


def size_constants(kind: Class) -> dict[str, Any]:
    """The compile-time arguments of `size_kernel`."""
    return {
        "PARAM": TYPES[kind.bucket.dtypes[0]],
        "STATE": TYPES[kind.bucket.dtypes[2]],
        "PARAM_ALIGN": kind.bucket.alignments[0],
        **sums_constants(kind),
        **_fold(kind),
        "WIDTH": 2 * WIDTH,
    }


def apply_constants(kind: Class) -> dict[str, Any]:
    """The compile-time arguments of `apply_kernel`."""
    bucket = kind.bucket
    size = size_constants(kind)
    del size["WIDTH"]
    return {
        **size,
        "SHADOW": TYPES[bucket.dtypes[3]],
        "SHADOW_ALIGN": bucket.alignments[3],
        "AVERAGE_ALIGN": bucket.alignments[4],
        "HAS_SHADOW": bucket.dtypes[3] is not None,
        "HAS_AVERAGE": bucket.averaged,
        "GRADS": bucket.grads,
    }


def _tile(kind: Class) -> dict[str, Any]:
    tile = kind.tile
    return {
        "MATRICES": tile.matrices,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "SPAN": tile.span,
        "VECTOR": tile.vector,
        "WIDE": tile.wide,
    }


def _fold(kind: Class) -> dict[str, Any]:
    # a matrix among several has one sum of means, a large one many
    return {"FOLD_ROWS": kind.tile.fold_rows, "SEGMENTS": 1 if kind.tile.matrices > 1 else WIDTH}
