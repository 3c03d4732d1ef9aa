"""Where a program is: its tile, and the elements of one step down it."""

from __future__ import annotations

import triton
import triton.language as tl

# Rows of the table of shapes.
MATRICES_ROW = tl.constexpr(0)
ROWS_ROW = tl.constexpr(1)
COLUMNS_ROW = tl.constexpr(2)
ROW_SUMS_ROW = tl.constexpr(3)
COLUMN_SUMS_ROW = tl.constexpr(4)
MEANS_ROW = tl.constexpr(5)
FIRST_TILE_ROW = tl.constexpr(6)
TILES_ROW = tl.constexpr(7)


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
