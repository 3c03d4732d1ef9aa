"""Matrices in tiles: where each program of Adafactor's launches works, and where its sums go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stepgraph_kernels.spec import Tuning
from stepgraph_kernels.table import Bucket, chunk_size

FOLD = 1024  # rows, or columns, whose sums one program of the folding launch adds
COLUMNS = 128  # of a tile: a warp reads a row, so that its sum needs no shared memory


@dataclass(frozen=True)
class Tile:
    """What one iteration of a program covers, in powers of two.

    Attributes:
        matrices: Whole matrices, 1 unless they are smaller than a tile.
        rows: Of each.
        columns: Of each.
        span: Rows of a program, which goes down them in steps of `rows`.
        vector: Whether this is one row of a vector, which has no mean over its rows.
        wide: Whether every row starts at a multiple of eight elements.
    """

    matrices: int
    rows: int
    columns: int
    span: int
    vector: bool
    wide: bool

    @property
    def fold_rows(self) -> int:
        """Rows of a program of the folding launch."""
        return self.rows if self.matrices > 1 else FOLD

    @property
    def fold_columns(self) -> int:
        """Columns of a program of the folding launch."""
        return self.columns if self.matrices > 1 else FOLD


@dataclass(frozen=True)
class Class:
    """What one launch of each kernel is compiled for."""

    bucket: Bucket
    tile: Tile


@dataclass(frozen=True)
class Tiling:
    """The tiles of all tensors, sorted by class; those of a tensor lie side by side.

    Attributes:
        shapes: `[8][tensors]`: matrices, rows, columns; where in the scratch the sums of rows, of
            columns, and of the means of rows begin; first tile and number of tiles.
        tiles: `[4][tiles]`: tensor, first matrix, first row, first column.
        folds: `[4][folds]`: tensor, whether it adds columns, first matrix, first row or column.
        classes: What to launch.
        tile_ranges: For each class its first tile and its number of tiles.
        fold_ranges: The same for folds.
        scratch: How many sums there are.
    """

    shapes: list[list[int]]
    tiles: list[list[int]]
    folds: list[list[int]]
    classes: list[Class]
    tile_ranges: list[tuple[int, int]]
    fold_ranges: list[tuple[int, int]]
    scratch: int


def tile_block(shape: torch.Size, bucket: Bucket, tuning: Tuning) -> int:
    """Choose the elements of a tile: half a block where a whole one takes too many registers.

    That is beside an average, which is one more stream; in rows that are not aligned, whose
    elements have an address each; and in vectors, but for 16 bits, which need it to fill 128.
    """
    narrow = bucket.dtypes[0].itemsize == bucket.dtypes[1].itemsize == 2
    aligned = (len(shape) > 1 or narrow) and matrices_of(shape)[2] % 8 == 0
    return tuning.block if aligned and not bucket.averaged else tuning.block // 2


def matrices_of(shape: torch.Size) -> tuple[int, int, int]:
    """Read a shape as `[matrices, rows, columns]`; a vector is one row."""
    if len(shape) < 2:
        return 1, 1, shape.numel()
    return shape[:-2].numel(), shape[-2], shape[-1]


def tile_of(shape: torch.Size, *, block: int, chunk: int) -> Tile:
    """Choose the tile of a parameter.

    Args:
        shape: Of the parameter.
        block: Elements of a tile, a power of two of at least `COLUMNS`.
        chunk: Elements of a program, if there are enough rows.
    """
    _, rows, columns = matrices_of(shape)
    wide = columns % 8 == 0
    if len(shape) < 2:
        return Tile(1, 1, block, 1, vector=True, wide=wide)
    across = min(_power_of_two(columns), COLUMNS)
    down = min(_power_of_two(rows), block // across)
    if rows <= down and columns > across:  # few rows: longer ones
        across = min(_power_of_two(columns), block // down)
    span = down * max(1, chunk // block)
    return Tile(block // (down * across), down, across, span, vector=False, wide=wide)


def tiling(shapes: Sequence[torch.Size], buckets: Sequence[Bucket], tuning: Tuning) -> Tiling:
    """Cut tensors into tiles.

    Args:
        shapes: Of each parameter; one without elements gives no tile.
        buckets: Of each parameter: dtypes and alignments.
        tuning: Its `block` is a tile, its `chunk` what a program gets; None chooses by the total.
    """
    total = sum(shape.numel() for shape in shapes)
    chunk = tuning.chunk if tuning.chunk is not None else chunk_size(total)
    classes = [
        Class(bucket, tile_of(shape, block=tile_block(shape, bucket, tuning), chunk=chunk))
        for shape, bucket in zip(shapes, buckets, strict=True)
    ]
    table = [[0] * 8 for _ in shapes]
    tiles: list[list[int]] = []
    folds: list[list[int]] = []
    tile_ranges, fold_ranges = [], []
    scratch = 0
    for kind in dict.fromkeys(classes):
        first_tile, first_fold = len(tiles), len(folds)
        for tensor, shape in enumerate(shapes):
            if classes[tensor] != kind or not shape.numel():
                continue
            mine = _tiles(tensor, shape, kind.tile)
            sums = _scratch(shape, kind.tile)
            places = [scratch, scratch + sums[0], scratch + sums[0] + sums[1]]
            table[tensor] = [*matrices_of(shape), *places, len(tiles), len(mine)]
            scratch += sum(sums)
            tiles += mine
            folds += _folds(tensor, shape, kind.tile)
        tile_ranges.append((first_tile, len(tiles) - first_tile))
        fold_ranges.append((first_fold, len(folds) - first_fold))
    return Tiling(
        shapes=_columns(table, 8),
        tiles=_columns(tiles, 4),
        folds=_columns(folds, 4),
        classes=list(dict.fromkeys(classes)),
        tile_ranges=tile_ranges,
        fold_ranges=fold_ranges,
        scratch=scratch,
    )


def _tiles(tensor: int, shape: torch.Size, tile: Tile) -> list[list[int]]:
    matrices, rows, columns = matrices_of(shape)
    return [
        [tensor, matrix, row, column]
        for matrix in range(0, matrices, tile.matrices)
        for row in range(0, rows, tile.span)
        for column in range(0, columns, tile.columns)
    ]


def _folds(tensor: int, shape: torch.Size, tile: Tile) -> list[list[int]]:
    matrices, rows, columns = matrices_of(shape)
    along = [(1, columns, tile.fold_columns)]
    along += [] if tile.vector else [(0, rows, tile.fold_rows)]
    return [
        [tensor, axis, matrix, first]
        for axis, length, step in along
        for matrix in range(0, matrices, tile.matrices)
        for first in range(0, length, step)
    ]


def _scratch(shape: torch.Size, tile: Tile) -> tuple[int, int, int]:
    """How many sums of rows, of columns, and of the means of rows there are."""
    matrices, rows, columns = matrices_of(shape)
    row_sums = 0 if tile.vector else -(-columns // tile.columns) * matrices * rows
    column_sums = -(-rows // tile.span) * matrices * columns
    return row_sums, column_sums, matrices * -(-rows // tile.fold_rows)


def _columns(rows: list[list[int]], width: int) -> list[list[int]]:
    return [[row[index] for row in rows] for index in range(width)]


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
