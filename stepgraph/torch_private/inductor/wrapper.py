"""The Python that Inductor writes around its kernels, read as a list of calls."""

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

_guards: Any = guards  # what is used of it here has no types


class Unreadable(Exception):  # noqa: N818  (a decision, not an error)
    """The wrapper does something else than calling kernels; says what."""


@dataclass(frozen=True, eq=False)
class Memory:
    """One allocation: an input's, or one that the wrapper makes.

    Attributes:
        size_bytes: How large it is; an input's reaches from its first element to its last.
        source: The position of the input, or None.
    """

    size_bytes: int
    source: int | None = None


@dataclass(frozen=True)
class Strided:
    """A tensor of the wrapper: where in a memory it lies, and how.

    Attributes:
        memory: The allocation; a kernel may write all of it.
        offset: Elements from where it starts; not what an input's storage has before it.
        size: Sizes.
        stride: Strides, in elements.
        dtype: Of the elements.
    """

    memory: Memory
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end_bytes(self) -> int:
        """How many bytes of its memory lie before the end of its last element."""
        return _end_bytes(self.size, self.stride, self.dtype, self.offset)


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
    call. It can do nothing with a stand-in but pass it on, and its code may only go straight from
    its beginning to its end, so what it does cannot depend on what it is given.

    Args:
        compiled: What `compile_inference` has returned, for fixed sizes.
        inputs: Tensors as it takes them; only their layouts are read.

    Raises:
        Unreadable: It does what there is no word for here.
    """
    if not isinstance(compiled, MethodType) or not isinstance(compiled.__func__, FunctionType):
        raise Unreadable("its wrapper is no Python")
    function = compiled.__func__
    if not _goes_straight(function.__code__):
        raise Unreadable("its wrapper does more than calling kernels, one after the other")
    reading = _Reading()
    try:
        arguments = [_input(i, value) for i, value in enumerate(inputs)]
        words = _words(reading, function.__globals__)
        results = FunctionType(function.__code__, words)(_StandIn(), arguments)
        return Wrapper(tuple(reading.calls), tuple(map(_tensor, results)))
    except _UNKNOWN as error:
        raise Unreadable(f"its wrapper does more than calling kernels: {error}") from error


_UNKNOWN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    TypeError,
    ValueError,
)
"""What Python raises for a word, an operator or a kernel that is not known."""


class _Module(SimpleNamespace):
    """A module of which nothing but a few names is known; says which other name is read."""

    def __init__(self, called: str, **known: Any) -> None:
        super().__init__(**known)
        self._called = called

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._called}.{name}")


class _StandIn:
    """What the wrapper holds: a tensor, or itself. All it can do is to pass it on.

    Anything else - an operator, an attribute, a look at its truth - is an error.
    """

    __slots__ = ("__tensor",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Strided | None = None) -> None:
        self.__tensor = tensor

    def __bool__(self) -> bool:
        raise TypeError("it looks at values")

    def __eq__(self, other: object) -> bool:
        raise TypeError("it compares")

    @staticmethod
    def tensor(value: Any) -> Strided | None:
        return value.__tensor if type(value) is _StandIn else None


def _tensor(value: Any) -> Strided:
    """Return the tensor that a stand-in stands for."""
    tensor = _StandIn.tensor(value)
    if tensor is None:
        raise Unreadable("it passes on something else than tensors")
    return tensor


def _input(place: int, value: Any) -> _StandIn:
    if not isinstance(value, Tensor):
        raise Unreadable("it takes something else than tensors")
    size, stride = tuple(value.shape), tuple(value.stride())
    memory = Memory(_end_bytes(size, stride, value.dtype), place)
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
"""Instructions of Python that leave a trace elsewhere, or hide code from `_goes_straight`."""


def _goes_straight(code: CodeType) -> bool:
    """Return whether code has no branch, no loop, no `try`, and changes nothing but its locals."""
    if getattr(code, "co_exceptiontable", b""):  # before Python 3.11 `try` is a jump
        return False
    jumps = {*dis.hasjrel, *dis.hasjabs}
    instructions = list(dis.get_instructions(code))
    return not any(i.opcode in jumps or i.opname in _BEYOND_CALLS for i in instructions)


class _Reading:
    """Notes what is called."""

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


def _words(reading: _Reading, known: dict[str, Any]) -> dict[str, Any]:
    """Return all that a wrapper may see, by the names it has there.

    Args:
        reading: Notes what it calls.
        known: The globals of the wrapper: a name that means something else there is no word.
    """
    dtypes = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    words: dict[str, Any] = {"__builtins__": {}}
    if known.get("torch") is torch:
        words["torch"] = _Module("torch", **dtypes)
    if known.get("empty_strided_cpu") is _guards._empty_strided_cpu:
        words["empty_strided_cpu"] = reading.empty
    if known.get("reinterpret_tensor") is _guards._reinterpret_tensor:
        words["reinterpret_tensor"] = reading.view
    kernels = known.get("extern_kernels")
    if (getattr(kernels, "mm", None), getattr(kernels, "addmm", None)) == (torch.mm, torch.addmm):
        words["extern_kernels"] = _Module("extern_kernels", mm=reading.mm, addmm=reading.addmm)
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


def _end_bytes(
    size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, offset: int = 0
) -> int:
    """Return how many bytes a memory must have for a tensor that lies in it."""
    if prod(size) == 0:
        return 0
    farthest = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return (offset + farthest + 1) * dtype.itemsize
