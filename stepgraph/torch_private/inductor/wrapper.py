"""The wrapper, the Python that Inductor generates around its kernels, as a list of calls."""

from __future__ import annotations

import ctypes
import dis
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import guards

_guards: Any = guards  # the functions used here have no type annotations


class Unreadable(Exception):  # noqa: N818  (a decision, not an error)
    """The wrapper is not a plain sequence of supported calls, for the reason in the message."""


@dataclass(frozen=True, eq=False)
class Memory:
    """One allocation: an input's, or one that the wrapper makes.

    Attributes:
        size_bytes: Its size; for an input, from its first element to its last.
        source: The position of the input, or None.
    """

    size_bytes: int
    source: int | None = None


@dataclass(frozen=True)
class Strided:
    """A tensor of the wrapper: a strided view of a memory.

    Attributes:
        memory: The allocation; a kernel may write all of it.
        offset: Offset in elements from the start of the memory; an input's starts at its first
            element.
        size: Sizes.
        stride: Strides, in elements.
        dtype: Dtype of the elements.
    """

    memory: Memory
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end_bytes(self) -> int:
        """The offset in bytes of the end of its last element in its memory."""
        return _end_bytes(self.size, self.stride, self.dtype, self.offset)


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel of Inductor's.

    Attributes:
        address: Address of the C function, all of whose arguments are addresses.
        arguments: The tensors whose addresses it receives.
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
        """The number of multiplications."""
        (m, k), (_, n) = self.a.size, self.b.size
        return m * n * k


@dataclass(frozen=True)
class Wrapper:
    """The calls and results of a wrapper.

    Attributes:
        calls: The calls, in order.
        results: The tensors that it returns.
    """

    calls: tuple[KernelCall | MatrixProduct, ...]
    results: tuple[Strided, ...]


def read_wrapper(compiled: Callable[..., Any], inputs: Sequence[Tensor]) -> Wrapper:
    """Return the calls and results of a wrapper, without running its kernels.

    Its code runs with globals that are only stand-ins for tensors and for the functions it may
    call. A stand-in supports no operation, it can only be passed to calls, and the code may have no
    branches. So the calls do not depend on the values of the inputs.

    Args:
        compiled: The result of `compile_inference`, for fixed sizes.
        inputs: Example inputs; only their layouts are read.

    Raises:
        Unreadable: The wrapper does something that is not supported here.
    """
    if not isinstance(compiled, MethodType) or not isinstance(compiled.__func__, FunctionType):
        raise Unreadable("its wrapper is not Python")
    function = compiled.__func__
    if not _is_straight(function.__code__):
        raise Unreadable("its wrapper has branches or other side effects than kernel calls")
    recorder = _CallRecorder()
    try:
        arguments = [_input(i, value) for i, value in enumerate(inputs)]
        names = _stand_in_globals(recorder, function.__globals__)
        results = FunctionType(function.__code__, names)(_StandIn(), arguments)
        return Wrapper(tuple(recorder.calls), tuple(map(_tensor, results)))
    except _UNKNOWN as error:
        raise Unreadable(f"its wrapper is not a sequence of kernel calls: {error}") from error


_UNKNOWN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    TypeError,
    ValueError,
)
"""The exceptions for an unknown name, an operator on a stand-in, or an unknown kernel."""


class _Module(SimpleNamespace):
    """A module with only a few known names; an access to any other name raises an error."""

    def __init__(self, called: str, **known: Any) -> None:
        super().__init__(**known)
        self._called = called

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._called}.{name}")


class _StandIn:
    """A value of the wrapper: a tensor, or the wrapper itself. It can only be passed to calls.

    Any other use - an operator, an attribute, a truth test - is an error.
    """

    __slots__ = ("__tensor",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Strided | None = None) -> None:
        self.__tensor = tensor

    def __bool__(self) -> bool:
        raise TypeError("it tests a value")

    def __eq__(self, other: object) -> bool:
        raise TypeError("it compares")

    @staticmethod
    def tensor(value: Any) -> Strided | None:
        return value.__tensor if type(value) is _StandIn else None


def _tensor(value: Any) -> Strided:
    """Return the tensor of a stand-in."""
    tensor = _StandIn.tensor(value)
    if tensor is None:
        raise Unreadable("an argument or result is not a tensor")
    return tensor


def _input(position: int, value: Any) -> _StandIn:
    if not isinstance(value, Tensor):
        raise Unreadable("an input is not a tensor")
    size, stride = tuple(value.shape), tuple(value.stride())
    memory = Memory(_end_bytes(size, stride, value.dtype), position)
    return _StandIn(Strided(memory, 0, size, stride, value.dtype))


_BEYOND_CALLS = frozenset(
    {
        "STORE_GLOBAL",
        "DELETE_GLOBAL",
        "STORE_ATTR",
        "DELETE_ATTR",
        "IMPORT_NAME",
        "MAKE_FUNCTION",
        "YIELD_VALUE",
    }
)
"""Bytecode instructions with side effects, or with nested code that `_is_straight` cannot check."""


def _is_straight(code: CodeType) -> bool:
    """Return whether code has no branch, no loop, no `try`, and changes nothing but its locals."""
    if getattr(code, "co_exceptiontable", b""):  # before Python 3.11 `try` is a jump
        return False
    jumps = {*dis.hasjrel, *dis.hasjabs}
    instructions = list(dis.get_instructions(code))
    return not any(i.opcode in jumps or i.opname in _BEYOND_CALLS for i in instructions)


class _CallRecorder:
    """Records the calls of a wrapper."""

    def __init__(self) -> None:
        self.calls: list[KernelCall | MatrixProduct] = []

    def empty(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> _StandIn:
        memory = Memory(_end_bytes(size, stride, dtype))
        return _StandIn(Strided(memory, 0, size, stride, dtype))

    def view(
        self, base: _StandIn, size: tuple[int, ...], stride: tuple[int, ...], offset: int
    ) -> _StandIn:
        of = _tensor(base)
        view = Strided(of.memory, of.offset + offset, size, stride, of.dtype)
        if view.offset < 0 or view.end_bytes > of.memory.size_bytes:
            raise Unreadable("a view beyond its memory")
        return _StandIn(view)

    def mm(self, a: _StandIn, b: _StandIn, *, out: _StandIn) -> None:
        self.calls.append(MatrixProduct(_tensor(out), _tensor(a), _tensor(b)))

    def addmm(
        self,
        bias: _StandIn,
        a: _StandIn,
        b: _StandIn,
        *,
        alpha: float = 1,
        beta: float = 1,
        out: _StandIn,
    ) -> None:
        if (alpha, beta) != (1, 1):
            raise Unreadable("a scaled matrix product")
        self.calls.append(MatrixProduct(_tensor(out), _tensor(a), _tensor(b), _tensor(bias)))

    def kernel(self, address: int) -> Callable[..., None]:
        def note(*arguments: _StandIn) -> None:
            self.calls.append(KernelCall(address, tuple(map(_tensor, arguments))))

        return note


def _stand_in_globals(recorder: _CallRecorder, known: dict[str, Any]) -> dict[str, Any]:
    """Return the globals for a run of the wrapper: stand-ins, by name.

    Args:
        recorder: Records the calls.
        known: The real globals of the wrapper; a name with an unexpected value is left out.
    """
    dtypes = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    names: dict[str, Any] = {"__builtins__": {}}
    if known.get("torch") is torch:
        names["torch"] = _Module("torch", **dtypes)
    if known.get("empty_strided_cpu") is _guards._empty_strided_cpu:
        names["empty_strided_cpu"] = recorder.empty
    if known.get("reinterpret_tensor") is _guards._reinterpret_tensor:
        names["reinterpret_tensor"] = recorder.view
    kernels = known.get("extern_kernels")
    if (getattr(kernels, "mm", None), getattr(kernels, "addmm", None)) == (torch.mm, torch.addmm):
        names["extern_kernels"] = _Module("extern_kernels", mm=recorder.mm, addmm=recorder.addmm)
    for name, value in known.items():
        if name.startswith("cpp_fused") and isinstance(value, BuiltinFunctionType):
            names[name] = recorder.kernel(_address(value))
    return names


def _address(kernel: BuiltinFunctionType) -> int:
    """Return the address of the C function behind a kernel's Python binding."""
    module: Any = kernel.__self__
    library = ctypes.CDLL(module.__file__)  # already loaded, so this only returns its handle
    address = ctypes.cast(getattr(library, kernel.__name__), ctypes.c_void_p).value
    if address is None:
        raise Unreadable("a kernel without an address")
    return address


def _end_bytes(
    size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, offset: int = 0
) -> int:
    """Return the least size in bytes of a memory that contains a tensor."""
    if prod(size) == 0:
        return 0
    farthest = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return (offset + farthest + 1) * dtype.itemsize
