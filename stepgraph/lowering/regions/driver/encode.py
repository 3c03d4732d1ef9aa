"""A wrapper as a program for `driver.cpp`: a row of int64."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from stepgraph.lowering.regions.indices import Bound
from stepgraph.torch_private import KernelCall, MatrixProduct, Memory, Strided, Unreadable, Wrapper

_ARGUMENTS = 1024
"""Largest number of arguments of a kernel that `driver.cpp` supports."""

_SHARED = 1 << 23
"""Least number of multiplications for which a product uses several threads."""

_INT = (1 << 31) - 1
"""The greatest size that every BLAS supports."""

_END, _KERNEL, _PRODUCT, _FILL = 0, 1, {4: 2, 8: 3}, {4: 4, 8: 5}
_CHECK = {torch.int32: 6, torch.int64: 7}
"""Instruction codes; those on numbers by their size in bytes, or dtype."""


class Encoder:
    """Writes calls as instructions.

    Args:
        at: For every memory that is no input: the number of its block and its offset in bytes.
    """

    def __init__(self, at: dict[Memory, tuple[int, int]]) -> None:
        self._at = at
        self._words = array("q", [1])  # threads for a product; 0 for torch's number of threads

    def check_bound(self, bound: Bound, index: Tensor) -> None:
        """Check the values of an input first; the program stops if one is out of bounds."""
        if index.dtype not in _CHECK or not index.is_contiguous():
            raise Unreadable("indices that are not contiguous int32 or int64")
        if bound.low >= bound.high:
            raise Unreadable("indices into an empty dimension")
        self._words.extend((_CHECK[index.dtype], bound.position, 0, index.numel()))
        ignored = bound.low if bound.ignored is None else bound.ignored  # allowed either way
        self._words.extend((bound.low, bound.high, ignored))

    def encode(self, wrapper: Wrapper) -> bytes:
        """Return the program."""
        for call in wrapper.calls:
            if isinstance(call, KernelCall):
                self._kernel(call)
            else:
                self._product(call)
        self._words.append(_END)
        return self._words.tobytes()

    def _kernel(self, call: KernelCall) -> None:
        if len(call.arguments) > _ARGUMENTS:
            raise Unreadable(f"a kernel with {len(call.arguments)} arguments")
        self._words.extend((_KERNEL, call.address, len(call.arguments)))
        for argument in call.arguments:
            self._tensor(argument)

    def _product(self, call: MatrixProduct) -> None:
        _check(call)
        if call.multiplications >= _SHARED:
            self._words[0] = 0
        (m, k), (_, n) = call.a.size, call.b.size
        is_transposed, width = _matrix(call.out)
        if is_transposed:
            raise Unreadable("a matrix product into columns")
        if call.bias is not None:
            self._fill(call.out, call.bias, width)
        # BLAS is column-major: a row-major product is the product of the swapped operands
        (transposes_a, lda), (transposes_b, ldb) = _matrix(call.b), _matrix(call.a)
        self._words.extend((_PRODUCT[call.out.dtype.itemsize], transposes_a, transposes_b, n, m, k))
        self._tensor(call.b)
        self._words.append(lda)
        self._tensor(call.a)
        self._words.extend((ldb, call.bias is not None))
        self._tensor(call.out)
        self._words.append(width)

    def _fill(self, out: Strided, bias: Strided, width: int) -> None:
        rows, columns = out.size
        missing = (1,) * (2 - len(bias.size))
        size, stride = (*missing, *bias.size), (*missing, *bias.stride)
        down, across = (s if n > 1 else 0 for n, s in zip(size, stride, strict=True))
        self._words.extend((_FILL[out.dtype.itemsize], rows, columns))
        self._tensor(bias)
        self._words.extend((down, across))
        self._tensor(out)
        self._words.append(width)

    def _tensor(self, tensor: Strided) -> None:
        source = tensor.memory.source
        base, first = self._at[tensor.memory] if source is None else (source, 0)
        self._words.extend((base, first + tensor.offset * tensor.dtype.itemsize))


def _check(call: MatrixProduct) -> None:
    """Refuse products that BLAS does not compute, or computes differently from torch."""
    dtypes = {tensor.dtype for tensor in call.arguments}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise Unreadable("a matrix product of a dtype other than float32 or float64")
    if not all(len(tensor.size) == 2 for tensor in (call.out, call.a, call.b)):
        raise Unreadable("a product of tensors that are not matrices")
    (m, k), (also_k, n) = call.a.size, call.b.size
    if k != also_k or call.out.size != (m, n) or not _is_broadcastable(call.bias, (m, n)):
        raise Unreadable("a product of matrices whose sizes do not match")
    if not call.multiplications:
        raise Unreadable("an empty matrix product")
    if any(tensor.end_bytes > _INT for tensor in call.arguments):
        raise Unreadable("a matrix product too large for BLAS")
    if any(tensor.memory is call.out.memory for tensor in call.arguments[1:]):
        raise Unreadable("a matrix product into the memory of its operands")


def _is_broadcastable(bias: Strided | None, size: tuple[int, int]) -> bool:
    """Return whether a bias can be broadcast to a size."""
    if bias is None:
        return True
    pairs = zip(reversed(bias.size), reversed(size), strict=False)
    return len(bias.size) <= len(size) and all(own in (1, n) for own, n in pairs)


def _matrix(tensor: Strided) -> tuple[bool, int]:
    """Return whether a matrix is column-major, and its leading dimension in elements."""
    (rows, columns), (down, across) = tensor.size, tensor.stride
    if (across == 1 or columns == 1) and (rows == 1 or down >= columns):
        return False, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (columns == 1 or across >= rows):
        return True, across if columns > 1 else rows
    raise Unreadable("a matrix whose rows and columns both have gaps")
