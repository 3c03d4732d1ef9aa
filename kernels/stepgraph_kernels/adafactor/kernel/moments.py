"""v of a tile, and the gradient divided by its root."""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.adafactor.kernel.coefficients import EPS1, EPS1_SQUARE
from stepgraph_kernels.adafactor.kernel.tile import MEANS_ROW
from stepgraph_kernels.sweep.kernel import STATE_ROW, _pointer


@triton.jit
def _least_mean(
    scratch, shapes, tensors, tensor, m, matrices, rows, eps1,
    FOLD_ROWS: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """The larger of eps1 and the mean of R, of each matrix, from the sums that the fold left."""
    segments = tl.cdiv(rows, FOLD_ROWS)
    place = scratch + tl.load(shapes + MEANS_ROW * tensors + tensor) + m[:, None] * segments
    total = tl.sum(tl.zeros([m.shape[0], SEGMENTS], dtype=tl.float32), axis=1)
    for start in range(0, segments.to(tl.int32), SEGMENTS):
        lane = start + tl.arange(0, SEGMENTS)
        here = (m < matrices)[:, None] & (lane < segments)[None, :]
        total += tl.sum(tl.load(place + lane[None, :], mask=here, other=0.0), axis=1)
    mean = total / rows.to(tl.float32)
    return tl.maximum(mean, eps1, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _columns_of(
    addresses, tensors, tensor, m, c, matrices, columns, STATE: tl.constexpr, VECTOR: tl.constexpr
):
    """C of a tile, or the variances of a vector: `[matrices, columns]`."""
    state_row = STATE_ROW if VECTOR else STATE_ROW + 1
    pointer = _pointer(addresses, state_row, tensors, tensor, 0, STATE, 1)
    here = (m < matrices)[:, None] & (c < columns)[None, :]
    place = m[:, None] * columns + c[None, :]
    return tl.load(pointer + place, mask=here, other=0.0).to(tl.float32)


@triton.jit
def _moments(
    addresses, shapes, scratch, own, tensors, tensor, matrix, column, matrices, rows, columns,
    STATE: tl.constexpr, MATRICES: tl.constexpr, COLUMNS: tl.constexpr,
    FOLD_ROWS: tl.constexpr, SEGMENTS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """What v of a tile is made of: where R is, its least mean, C, and eps1^2."""
    m = matrix + tl.arange(0, MATRICES)
    c = column + tl.arange(0, COLUMNS)
    row_ptr = _pointer(addresses, STATE_ROW, tensors, tensor, 0, STATE, 1)
    column_var = _columns_of(addresses, tensors, tensor, m, c, matrices, columns, STATE, VECTOR)
    least = tl.zeros([MATRICES], dtype=tl.float32)
    if not VECTOR:
        eps1 = tl.load(own + EPS1 * tensors)
        least = _least_mean(
            scratch, shapes, tensors, tensor, m, matrices, rows, eps1, FOLD_ROWS, SEGMENTS
        )
    return row_ptr, least, column_var, tl.load(own + EPS1_SQUARE * tensors)


@triton.jit
def _update(grad, row_ptr, line, real, least, column_var, least_square, VECTOR: tl.constexpr):
    """Divide the gradient by sqrt(max(v, eps1^2)), in one step down a tile."""
    if VECTOR:
        variance = column_var[:, None, :]
    else:
        row_var = tl.load(row_ptr + line, mask=real, other=0.0).to(tl.float32)
        variance = (row_var / least[:, None])[:, :, None] * column_var[:, None, :]
    floor = tl.maximum(variance, least_square, propagate_nan=tl.PropagateNan.ALL)
    return grad / tl.sqrt_rn(floor)
