"""The second pass: how large each tensor and its update are."""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.adafactor.kernel.coefficients import EPS2, FACTOR, RHO, THRESHOLD
from stepgraph_kernels.adafactor.kernel.moments import _moments, _update
from stepgraph_kernels.adafactor.kernel.tile import (
    FIRST_TILE_ROW,
    TILES_ROW,
    _corner,
    _lanes,
    _shape,
)
from stepgraph_kernels.sweep.kernel import GRAD_ROW, OWN_ROWS, PARAM_ROW, _pointer


@triton.jit
def _factor(tile_sums, shapes, own, tensors, tensor, count, numel, WIDTH: tl.constexpr):
    """The factor of u, alpha / max(1, RMS(u) / d), from the tiles of a tensor in their order."""
    first = tl.load(shapes + FIRST_TILE_ROW * tensors + tensor)
    tiles = tl.load(shapes + TILES_ROW * tensors + tensor).to(tl.int32)
    params = tl.zeros([WIDTH], dtype=tl.float64)
    updates = tl.zeros([WIDTH], dtype=tl.float64)
    for start in range(0, tiles, WIDTH):
        lane = start + tl.arange(0, WIDTH)
        place = tile_sums + first + lane
        # .cg: other programs wrote these, the first-level cache may be stale
        some = tl.load(place, mask=lane < tiles, other=0.0, cache_modifier=".cg")
        more = tl.load(place + count, mask=lane < tiles, other=0.0, cache_modifier=".cg")
        params += some.to(tl.float64)
        updates += more.to(tl.float64)
    size = tl.sqrt_rn((tl.sum(params, axis=0) / numel).to(tl.float32))
    ratio = tl.sqrt_rn((tl.sum(updates, axis=0) / numel).to(tl.float32))
    ratio = ratio / tl.load(own + THRESHOLD * tensors)
    least = tl.load(own + EPS2 * tensors)
    # comparisons as Python's max has them: a nan is not larger
    alpha = tl.where(size > least, size, least) * tl.load(own + RHO * tensors)
    return alpha / tl.where(ratio > 1.0, ratio, 1.0)


@triton.jit(do_not_specialize=["tensors", "count", "first"])
def size_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    shapes,  # [8, tensors] int64; see `Tiling`
    tiles,  # [4, count] int64; see `Tiling`
    scratch,  # float32, from the fold
    tile_sums,  # [2, count] float32, scratch
    arrivals,  # [tensors] int32, zero before and after
    coefficients,  # [2 + family's, tensors] float32; the last of a tensor is written
    verdict,  # [4] float32, from the first launch
    tensors,
    count,
    first,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    PARAM_ALIGN: tl.constexpr,
    GRAD_ALIGN: tl.constexpr,
    MATRICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    FOLD_ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program for each tile; the last one of a tensor leaves the factor of its update."""
    if tl.load(verdict + 2) == 0.0:
        tile = first + tl.program_id(0)
        tensor, matrix, row, column = _corner(tiles, count, tile, COLUMNS)
        matrices, rows, columns = _shape(shapes, tensors, tensor, WIDE)
        param_ptr = _pointer(addresses, PARAM_ROW, tensors, tensor, 0, PARAM, PARAM_ALIGN)
        grad_ptr = _pointer(addresses, GRAD_ROW, tensors, tensor, 0, GRAD, GRAD_ALIGN)
        multiplier = tl.load(verdict + 1)
        own = coefficients + OWN_ROWS * tensors + tensor
        row_ptr, least, column_var, least_square = _moments(
            addresses, shapes, scratch, own, tensors, tensor, matrix, column,
            matrices, rows, columns, STATE, MATRICES, COLUMNS, FOLD_ROWS, SEGMENTS, VECTOR,
        )  # fmt: skip
        params = tl.zeros([MATRICES, ROWS, COLUMNS], dtype=tl.float32)
        updates = tl.zeros([MATRICES, ROWS, COLUMNS], dtype=tl.float32)
        for start in range(0, tl.minimum(rows - row, SPAN).to(tl.int32), ROWS):
            line, real, offsets, mask = _lanes(
                matrix, row + start, column, matrices, rows, columns, MATRICES, ROWS, COLUMNS
            )
            grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * multiplier
            param = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            update = _update(grad, row_ptr, line, real, least, column_var, least_square, VECTOR)
            params += param * param
            # where: with eps1 0 a masked lane is 0 / 0
            updates += tl.where(mask, update * update, 0.0)
        tl.store(tile_sums + tile, tl.sum(tl.sum(tl.sum(params, axis=2), axis=1), axis=0))
        size = tl.sum(tl.sum(tl.sum(updates, axis=2), axis=1), axis=0)
        tl.store(tile_sums + count + tile, size)
        tl.debug_barrier()
        left = tl.load(shapes + TILES_ROW * tensors + tensor) - 1
        if tl.atomic_add(arrivals + tensor, 1, sem="acq_rel", scope="gpu") == left:
            numel = (matrices * rows * columns).to(tl.float64)
            factor = _factor(tile_sums, shapes, own, tensors, tensor, count, numel, WIDTH)
            tl.store(own + FACTOR * tensors, factor)
            tl.store(arrivals + tensor, 0)
