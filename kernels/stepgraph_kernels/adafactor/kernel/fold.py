"""From sums to states: R, C, the variances of vectors."""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.adafactor.kernel.coefficients import WEIGHT
from stepgraph_kernels.adafactor.kernel.tile import COLUMN_SUMS_ROW, MEANS_ROW, ROW_SUMS_ROW, _shape
from stepgraph_kernels.sweep.kernel import OWN_ROWS, STATE_ROW, _average, _pointer


@triton.jit
def _mean(
    scratch, place, stride, count, real, state_ptr, index, factor, weight, STATE: tl.constexpr
):
    """Add `count` sums, `stride` apart, and move the state towards their mean."""
    total = tl.zeros(real.shape, dtype=tl.float64)
    for part in range(0, count):
        total += tl.load(scratch + place + part * stride + index, mask=real, other=0.0).to(
            tl.float64
        )
    old = tl.load(state_ptr + index, mask=real, other=0.0).to(tl.float32)
    new = _average(old, (total * factor).to(tl.float32), weight).to(STATE)
    tl.store(state_ptr + index, new, mask=real)
    return tl.where(real, new.to(tl.float32), 0.0)


@triton.jit(do_not_specialize=["tensors", "count", "first"])
def fold_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    shapes,  # [8, tensors] int64; see `Tiling`
    folds,  # [4, count] int64; see `Tiling`
    scratch,  # float32. Sums are read, those of the means of rows are written
    coefficients,  # [2 + family's, tensors] float32, from the first launch
    verdict,  # [4] float32, from the first launch
    tensors,
    count,
    first,
    STATE: tl.constexpr,
    MATRICES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    FOLD_ROWS: tl.constexpr,
    FOLD_COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Update R, C and the variances of vectors; leave the sums of R for its mean."""
    if tl.load(verdict + 2) == 0.0:
        fold = first + tl.program_id(0)
        tensor = tl.load(folds + fold)
        axis = tl.load(folds + count + fold)
        matrix = tl.load(folds + 2 * count + fold)
        start = tl.load(folds + 3 * count + fold)
        matrices, rows, columns = _shape(shapes, tensors, tensor, False)
        multiplier = tl.load(verdict + 1).to(tl.float64)
        square = multiplier * multiplier
        weight = tl.load(coefficients + (OWN_ROWS + WEIGHT) * tensors + tensor)
        m = matrix + tl.arange(0, MATRICES)
        if axis == 1:
            c = start + tl.arange(0, FOLD_COLUMNS)
            state_row = STATE_ROW if VECTOR else STATE_ROW + 1
            column_ptr = _pointer(addresses, state_row, tensors, tensor, 0, STATE, 1)
            column_place = tl.load(shapes + COLUMN_SUMS_ROW * tensors + tensor)
            _mean(
                scratch, column_place, matrices * columns, tl.cdiv(rows, SPAN),
                (m < matrices)[:, None] & (c < columns)[None, :], column_ptr,
                m[:, None] * columns + c[None, :], square / rows.to(tl.float64), weight, STATE,
            )  # fmt: skip
        elif not VECTOR:
            r = start + tl.arange(0, FOLD_ROWS)
            row_ptr = _pointer(addresses, STATE_ROW, tensors, tensor, 0, STATE, 1)
            row_place = tl.load(shapes + ROW_SUMS_ROW * tensors + tensor)
            means = _mean(
                scratch, row_place, matrices * rows, tl.cdiv(columns, COLUMNS),
                (m < matrices)[:, None] & (r < rows)[None, :], row_ptr,
                m[:, None] * rows + r[None, :], square / columns.to(tl.float64), weight, STATE,
            )  # fmt: skip
            place = tl.load(shapes + MEANS_ROW * tensors + tensor)
            place += m * tl.cdiv(rows, FOLD_ROWS) + start // FOLD_ROWS
            tl.store(scratch + place, tl.sum(means, axis=1), mask=m < matrices)
