"""Adafactor in Triton: second moments from the means of their rows and columns.

    w = t^decay                          alpha = max(eps2, RMS(p)) min(lr, 1 / sqrt(t))
    R <- lerp(R, mean of g^2 over columns, w)      C <- lerp(C, mean of g^2 over rows, w)
    v = R C / max(mean of R, eps1)       (a vector keeps v itself: v <- lerp(v, g^2, w))
    u = g / sqrt(max(v, eps1^2))
    p <- (1 - lr wd) p - alpha u / max(1, RMS(u) / d)

Shazeer and Stern, arXiv 1804.04235, as `torch.optim.Adafactor` has it: eps1 in v and not in R and
C, weight decay by lr. v needs whole rows and columns, RMS(u) needs v, p needs RMS(u): three passes
over g, which is the least. The sums of g^2 are taken before the multiplier of the gradients is
known, and multiplied by its square after, so the norm for clipping is among them for nothing.
The parameter is read with the second pass, for its RMS, and updated with the third: 24 bytes an
element in float32, clipped or not.

    sums_kernel      g       -> sums of g^2 over the rows and columns of each tile, and of the tile
    decide_kernel    those   -> norm, multiplier, skip, coefficients, counters
    fold_kernel      those   -> R, C (less than a hundredth of the elements in a large matrix)
    size_kernel      g, p    -> RMS(u), RMS(p), the factor of u
    apply_kernel     g, p    -> p, and what follows in the same pass

Tensors are read as `[matrices, rows, columns]`. A program takes a tile of one matrix, or several
matrices that are smaller than a tile. All sums are added in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stepgraph_kernels.decide.kernel import power
from stepgraph_kernels.sweep.kernel import (
    AVERAGE_ROW,
    GRAD_ROW,
    OWN_ROWS,
    PARAM_ROW,
    SHADOW_ROW,
    STATE_ROW,
    _after,
    _average,
    _pointer,
)

# Rows of the table of shapes.
MATRICES_ROW = tl.constexpr(0)
ROWS_ROW = tl.constexpr(1)
COLUMNS_ROW = tl.constexpr(2)
ROW_SUMS_ROW = tl.constexpr(3)
COLUMN_SUMS_ROW = tl.constexpr(4)
MEANS_ROW = tl.constexpr(5)
FIRST_TILE_ROW = tl.constexpr(6)
TILES_ROW = tl.constexpr(7)

# Coefficients of a tensor.
WEIGHT = tl.constexpr(0)
DECAY = tl.constexpr(1)
RHO = tl.constexpr(2)
EPS1 = tl.constexpr(3)
EPS1_SQUARE = tl.constexpr(4)
EPS2 = tl.constexpr(5)
THRESHOLD = tl.constexpr(6)
FACTOR = tl.constexpr(7)


@triton.jit
def adafactor_prepare(hyper, step, second, out, stride, mask):
    lr = tl.load(hyper, mask=mask, other=0.0)
    beta2_decay = tl.load(hyper + 1, mask=mask, other=0.0)
    eps1 = tl.load(hyper + 2, mask=mask, other=0.0)
    eps2 = tl.load(hyper + 3, mask=mask, other=0.0)
    threshold = tl.load(hyper + 4, mask=mask, other=1.0)
    weight_decay = tl.load(hyper + 5, mask=mask, other=0.0)
    relative = 1.0 / tl.sqrt(tl.where(mask, step, 1.0))
    rho = tl.where(relative < lr, relative, lr)
    tl.store(out + WEIGHT * stride, power(step, beta2_decay).to(tl.float32), mask=mask)
    tl.store(out + DECAY * stride, (1.0 - lr * weight_decay).to(tl.float32), mask=mask)
    tl.store(out + RHO * stride, rho.to(tl.float32), mask=mask)
    tl.store(out + EPS1 * stride, eps1.to(tl.float32), mask=mask)
    tl.store(out + EPS1_SQUARE * stride, (eps1 * eps1).to(tl.float32), mask=mask)
    tl.store(out + EPS2 * stride, eps2.to(tl.float32), mask=mask)
    tl.store(out + THRESHOLD * stride, threshold.to(tl.float32), mask=mask)
    # the eighth is the factor of the update, written by `size_kernel`


@triton.jit
def _shape(shapes, tensors, tensor, WIDE: tl.constexpr):
    """Matrices, rows and columns of a tensor."""
    matrices = tl.load(shapes + MATRICES_ROW * tensors + tensor)
    rows = tl.load(shapes + ROWS_ROW * tensors + tensor)
    columns = tl.load(shapes + COLUMNS_ROW * tensors + tensor)
    if WIDE:
        columns = tl.multiple_of(columns, 8)
    return matrices, rows, columns


@triton.jit
def _corner(tiles, count, tile, COLUMNS: tl.constexpr):
    """Tensor, first matrix, first row and first column of a tile."""
    tensor = tl.load(tiles + tile)
    matrix = tl.load(tiles + count + tile)
    row = tl.load(tiles + 2 * count + tile)
    column = tl.multiple_of(tl.load(tiles + 3 * count + tile), COLUMNS)
    return tensor, matrix, row, column


@triton.jit
def _lanes(
    matrix, row, column, matrices, rows, columns,
    MATRICES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Row numbers `[matrices, rows]` and elements `[matrices, rows, columns]`, with masks."""
    m = matrix + tl.arange(0, MATRICES)
    r = row + tl.arange(0, ROWS)
    c = column + tl.arange(0, COLUMNS)
    line = m[:, None] * rows + r[None, :]
    real = (m < matrices)[:, None] & (r < rows)[None, :]
    offsets = line[:, :, None] * columns + c[None, None, :]
    mask = real[:, :, None] & (c < columns)[None, None, :]
    return line, real, offsets, mask


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
