"""The first pass over the gradients: sums of their squares."""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.adafactor.kernel.tile import (
    COLUMN_SUMS_ROW,
    ROW_SUMS_ROW,
    _corner,
    _lanes,
    _shape,
)
from stepgraph_kernels.sweep.kernel import GRAD_ROW, _pointer


@triton.jit(do_not_specialize=["tensors", "count", "first"])
def sums_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    shapes,  # [8, tensors] int64; see `Tiling`
    tiles,  # [4, count] int64; see `Tiling`
    scratch,  # float32. Sums over rows and columns are written
    tile_sums,  # [2, count] float32: squares, values that are not finite. Written
    tensors,
    count,
    first,
    GRAD: tl.constexpr,
    GRAD_ALIGN: tl.constexpr,
    MATRICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program for each tile: squares of the gradients as they are, not unscaled."""
    tile = first + tl.program_id(0)
    tensor, matrix, row, column = _corner(tiles, count, tile, COLUMNS)
    matrices, rows, columns = _shape(shapes, tensors, tensor, WIDE)
    grad_ptr = _pointer(addresses, GRAD_ROW, tensors, tensor, 0, GRAD, GRAD_ALIGN)
    strip = scratch + tl.load(shapes + ROW_SUMS_ROW * tensors + tensor)
    strip += (column // COLUMNS) * matrices * rows
    total = tl.zeros([MATRICES, ROWS, COLUMNS], dtype=tl.float32)
    broken = tl.zeros([MATRICES, ROWS, COLUMNS], dtype=tl.int32)
    for start in range(0, tl.minimum(rows - row, SPAN).to(tl.int32), ROWS):
        line, real, offsets, mask = _lanes(
            matrix, row + start, column, matrices, rows, columns, MATRICES, ROWS, COLUMNS
        )
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        square = grad * grad
        total += square
        broken += tl.where(tl.abs(grad) < float("inf"), 0, 1)  # nan compares false
        if not VECTOR:
            tl.store(strip + line, tl.sum(square, axis=2), mask=real)
    sums = tl.sum(total, axis=1)
    m = matrix + tl.arange(0, MATRICES)
    c = column + tl.arange(0, COLUMNS)
    slab = scratch + tl.load(shapes + COLUMN_SUMS_ROW * tensors + tensor)
    slab += (row // SPAN) * matrices * columns
    here = (m < matrices)[:, None] & (c < columns)[None, :]
    tl.store(slab + m[:, None] * columns + c[None, :], sums, mask=here)
    tl.store(tile_sums + tile, tl.sum(tl.sum(sums, axis=1), axis=0))
    bad = tl.sum(tl.sum(tl.sum(broken, axis=2), axis=1), axis=0)
    tl.store(tile_sums + count + tile, bad.to(tl.float32))
