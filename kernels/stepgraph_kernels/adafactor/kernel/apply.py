"""The third pass: the update, and what follows it."""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.adafactor.kernel.coefficients import DECAY, FACTOR
from stepgraph_kernels.adafactor.kernel.moments import _moments, _update
from stepgraph_kernels.adafactor.kernel.tile import _corner, _lanes, _shape
from stepgraph_kernels.sweep.kernel import (
    AVERAGE_ROW,
    GRAD_ROW,
    OWN_ROWS,
    PARAM_ROW,
    SHADOW_ROW,
    _after,
    _pointer,
)


@triton.jit(do_not_specialize=["tensors", "count", "first"])
def apply_kernel(
    addresses,  # [9, tensors] int64, one row for each role
    shapes,  # [8, tensors] int64; see `Tiling`
    tiles,  # [4, count] int64; see `Tiling`
    scratch,  # float32, from the fold
    coefficients,  # [2 + family's, tensors] float32
    verdict,  # [4] float32, from the first launch
    tensors,
    count,
    first,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    SHADOW: tl.constexpr,
    PARAM_ALIGN: tl.constexpr,
    GRAD_ALIGN: tl.constexpr,
    SHADOW_ALIGN: tl.constexpr,
    AVERAGE_ALIGN: tl.constexpr,
    HAS_SHADOW: tl.constexpr,
    HAS_AVERAGE: tl.constexpr,
    GRADS: tl.constexpr,
    MATRICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
    FOLD_ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program for each tile. A skipped update still zeroes, casts and averages."""
    skip = tl.load(verdict + 2)
    tile = first + tl.program_id(0)
    tensor, matrix, row, column = _corner(tiles, count, tile, COLUMNS)
    matrices, rows, columns = _shape(shapes, tensors, tensor, WIDE)
    param_ptr = _pointer(addresses, PARAM_ROW, tensors, tensor, 0, PARAM, PARAM_ALIGN)
    grad_ptr = _pointer(addresses, GRAD_ROW, tensors, tensor, 0, GRAD, GRAD_ALIGN)
    shadow_ptr = param_ptr
    average_ptr = param_ptr
    if HAS_SHADOW:
        shadow_ptr = _pointer(addresses, SHADOW_ROW, tensors, tensor, 0, SHADOW, SHADOW_ALIGN)
    if HAS_AVERAGE:
        average_ptr = _pointer(
            addresses, AVERAGE_ROW, tensors, tensor, 0, tl.float32, AVERAGE_ALIGN
        )
    multiplier = tl.load(verdict + 1)
    sign = tl.load(coefficients + tensor)
    average_weight = tl.load(coefficients + tensors + tensor)
    own = coefficients + OWN_ROWS * tensors + tensor
    decay = tl.load(own + DECAY * tensors)
    factor = tl.load(own + FACTOR * tensors) * sign
    row_ptr, least, column_var, least_square = _moments(
        addresses, shapes, scratch, own, tensors, tensor, matrix, column, matrices, rows, columns,
        STATE, MATRICES, COLUMNS, FOLD_ROWS, SEGMENTS, VECTOR,
    )  # fmt: skip
    for start in range(0, tl.minimum(rows - row, SPAN).to(tl.int32), ROWS):
        line, real, offsets, mask = _lanes(
            matrix, row + start, column, matrices, rows, columns, MATRICES, ROWS, COLUMNS
        )
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * multiplier
        param = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if skip == 0.0:
            update = _update(grad, row_ptr, line, real, least, column_var, least_square, VECTOR)
            param = param * decay - factor * update
            tl.store(param_ptr + offsets, param.to(PARAM), mask=mask)
        _after(
            offsets, mask, param, grad, grad_ptr, shadow_ptr, average_ptr, average_weight,
            GRAD, SHADOW, HAS_SHADOW, HAS_AVERAGE, GRADS,
        )  # fmt: skip
