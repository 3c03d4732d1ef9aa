"""The Python that Inductor writes around its kernels, read as a list of calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Unreadable(Exception):  # noqa: N818  (a decision, not an error)
    """The wrapper does something else than calling kernels; says what."""


@dataclass(frozen=True, eq=False)
class Memory:
    """One allocation: an input's, or one that the wrapper makes.

    Attributes:
        source: The position of the input, or None.
    """

    source: int | None = None


@dataclass(frozen=True)
class Strided:
    """A tensor of the wrapper: where in a memory it lies, and how.

    Attributes:
        memory: The allocation.
        offset: Elements from where it starts.
        size: Sizes.
        stride: Strides, in elements.
        dtype: Of the elements.
    """

    memory: Memory
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel of Inductor's.

    Attributes:
        address: Of the C function, which takes nothing but addresses.
        arguments: The tensors whose addresses it takes.
    """

    address: int
    arguments: tuple[Strided, ...]


@dataclass(frozen=True)
class MatrixProduct:
    """`out = a @ b`, with `bias` added if there is one.

    Attributes:
        out: `[m, n]`; written.
        a: `[m, k]`.
        b: `[k, n]`.
        bias: Broadcast to `[m, n]`, or None.
    """

    out: Strided
    a: Strided
    b: Strided
    bias: Strided | None = None

    @property
    def arguments(self) -> tuple[Strided, ...]:
        """All tensors of the call."""
        given = self.out, self.a, self.b, self.bias
        return tuple(tensor for tensor in given if tensor is not None)

    @property
    def multiplications(self) -> int:
        """How many numbers it multiplies."""
        (m, k), (_, n) = self.a.size, self.b.size
        return m * n * k


@dataclass(frozen=True)
class Wrapper:
    """What a wrapper does.

    Attributes:
        calls: In order.
        results: What it returns.
    """

    calls: tuple[KernelCall | MatrixProduct, ...]
    results: tuple[Strided, ...]


def read_wrapper(compiled: Callable[..., Any], inputs: Sequence[Tensor]) -> Wrapper:
    """Return what a wrapper does, without doing it.

    Its code is run with nothing else in sight than stand-ins for tensors and for what it may
    call, so that nothing it does can be missed.

    Args:
        compiled: What `compile_inference` has returned, for fixed sizes.
        inputs: Tensors as it takes them; only their layouts are read.

    Raises:
        Unreadable: It does what there is no word for here.
    """
    if not isinstance(compiled, MethodType) or not isinstance(compiled.__func__, FunctionType):
        raise Unreadable("its wrapper is no Python")
    function = compiled.__func__
    reading = _Reading()
    words = _words(reading, function.__globals__)
    arguments = [_stand_in(i, value) for i, value in enumerate(inputs)]
    try:
        results = FunctionType(function.__code__, words)(None, arguments)
    except (AttributeError, LookupError, NameError, TypeError, ValueError) as error:
        raise Unreadable(f"its wrapper does more than calling kernels: {error}") from error
    if not all(isinstance(result, Strided) for result in results):
        raise Unreadable("it returns something else than tensors")
    return Wrapper(tuple(reading.calls), tuple(results))


def _stand_in(place: int, value: Any) -> Strided:
    if not isinstance(value, Tensor):
        raise Unreadable("it takes something else than tensors")
    size, stride = tuple(value.shape), tuple(value.stride())
    return Strided(Memory(place), 0, size, stride, value.dtype)


class _Reading:
    """Notes what is called."""

    def __init__(self) -> None:
        self.calls: list[KernelCall | MatrixProduct] = []

    def empty(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Strided:
        return Strided(Memory(), 0, size, stride, dtype)

    def view(
        self, base: Strided, size: tuple[int, ...], stride: tuple[int, ...], offset: int
    ) -> Strided:
        return Strided(base.memory, base.offset + offset, size, stride, base.dtype)

    def mm(self, a: Strided, b: Strided, *, out: Strided) -> None:
        self.calls.append(MatrixProduct(out, a, b))

    def addmm(
        self, bias: Strided, a: Strided, b: Strided, *, alpha: int, beta: int, out: Strided
    ) -> None:
        if (alpha, beta) != (1, 1):
            raise Unreadable("a scaled matrix product")
        self.calls.append(MatrixProduct(out, a, b, bias))

    def kernel(self, address: int) -> Callable[..., None]:
        def note(*arguments: Strided) -> None:
            if not all(isinstance(argument, Strided) for argument in arguments):
                raise Unreadable("a kernel takes something else than tensors")
            self.calls.append(KernelCall(address, arguments))

        return note


def _words(reading: _Reading, known: dict[str, Any]) -> dict[str, Any]:
    """Return all that a wrapper may see, by the names it has there."""
    dtypes = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    words: dict[str, Any] = {
        "__builtins__": {},
        "torch": SimpleNamespace(**dtypes),
        "empty_strided_cpu": reading.empty,
        "reinterpret_tensor": reading.view,
        "extern_kernels": SimpleNamespace(mm=reading.mm, addmm=reading.addmm),
    }
    for name, value in known.items():
        if name.startswith("cpp_fused") and isinstance(value, BuiltinFunctionType):
            words[name] = reading.kernel(_address(value))
    return words


def _address(kernel: BuiltinFunctionType) -> int:
    """Return the address of the C function behind a kernel's Python binding."""
    module: Any = kernel.__self__
    library = ctypes.CDLL(module.__file__)  # loaded already
    address = ctypes.cast(getattr(library, kernel.__name__), ctypes.c_void_p).value
    if address is None:
        raise Unreadable("a kernel without an address")
    return address
