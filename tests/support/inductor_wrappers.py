"""Wrappers as Inductor writes them around its kernels, written by hand or drawn."""

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch._C._dynamo import guards
from torch._inductor.select_algorithm import extern_kernels

from stepgraph.lowering.regions.driver import Driver
from stepgraph.torch_private import MatrixProduct, Memory, Strided, Wrapper

MODULE = {
    "torch": torch,
    "aten": torch.ops.aten,
    "assert_size_stride": guards.assert_size_stride,
    "empty_strided_cpu": guards._empty_strided_cpu,
    "reinterpret_tensor": guards._reinterpret_tensor,
    "extern_kernels": extern_kernels,
}
"""What Inductor imports for every wrapper, as far as the tests use it."""


def written_by_hand(body: str, **known: Any) -> Callable[[list[Any]], Any]:
    """Return a wrapper of such a body, which sees its inputs as `args`.

    Args:
        body: Statements, the last a `return`.
        **known: Globals of its module besides `MODULE`.
    """
    method = textwrap.indent("def call(self, args):\n" + textwrap.indent(body, "    "), "    ")
    module = {**MODULE, **known}
    exec(f"class Runner:\n{method}\n", module)  # as Inductor runs what it has written
    runner: Any = module["Runner"]
    return runner().call


@dataclasses.dataclass(frozen=True, repr=False)
class DrawnWrapper:
    """A wrapper of matrix products, and inputs for it. Its results are exact: small integers."""

    body: str
    inputs: list[torch.Tensor]

    def __repr__(self) -> str:
        layouts = [(tuple(x.shape), x.stride()) for x in self.inputs]
        return f"of {layouts}:\n{self.body}"


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """A name in a wrapper, and what it stands for."""

    name: str
    size: tuple[int, int]
    stride: tuple[int, int]

    def turned(self) -> "_Matrix":
        size, stride = self.size[::-1], self.stride[::-1]
        return _Matrix(f"reinterpret_tensor({self.name}, {size}, {stride}, 0)", size, stride)

    def row(self, i: int) -> "_Matrix":
        size, stride = (1, self.size[1]), self.stride
        offset = i * stride[0]
        return _Matrix(f"reinterpret_tensor({self.name}, {size}, {stride}, {offset})", size, stride)

    def spread(self, rows: int) -> "_Matrix":
        size, stride = (rows, self.size[1]), (0, self.stride[1])
        return _Matrix(f"reinterpret_tensor({self.name}, {size}, {stride}, 0)", size, stride)


def matrix(draw: Any, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A matrix of small integers in rows or in columns, which may have gaps between them."""
    rows, columns = size
    gap, offset = draw(st.sampled_from([0, 0, 3])), draw(st.sampled_from([0, 2]))
    is_turned = draw(st.booleans())
    stride = (1, rows + gap) if is_turned else (columns + gap, 1)
    seed = draw(st.integers(0, 99))
    numbers = torch.randint(-1, 2, (200,), generator=torch.Generator().manual_seed(seed))
    return torch.as_strided(numbers.to(dtype), size, stride, offset)


SIZES = st.sampled_from([1, 2, 3, 5])


@st.composite
def drawn_wrappers(draw: Any) -> DrawnWrapper:
    """A `DrawnWrapper`: products of products, some into memory used before, whole or not."""
    sizes = [(draw(SIZES), draw(SIZES)) for _ in range(draw(st.integers(1, 3)))]
    inputs = [matrix(draw, size) for size in sizes]
    known = [_Matrix(f"arg{i}", *_layout(x)) for i, x in enumerate(inputs)]
    lines = [f"{', '.join(m.name for m in known)}, = args", "args.clear()"]
    made: list[_Matrix] = []
    for i in range(draw(st.integers(1, 4))):
        made.append(_product(draw, f"buf{i}", known + made, made, lines))
    kept = draw(st.lists(st.sampled_from(made), min_size=1, unique=True))
    lines.append(f"return ({', '.join(_returned(draw, m) for m in kept)},)")
    return DrawnWrapper("\n".join(lines), inputs)


def _layout(x: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(x.shape), x.stride()


def _product(
    draw: Any, name: str, known: list[_Matrix], made: list[_Matrix], lines: list[str]
) -> _Matrix:
    """Write a product of known matrices; what it takes the memory of is known no longer."""
    a = _looked_at(draw, draw(st.sampled_from(known)))
    fitting = [m for k in known for m in (k, k.turned()) if m.size[0] == a.size[1]]
    b = draw(st.sampled_from(fitting)) if fitting else a.turned()
    size = (a.size[0], b.size[1])
    biases = [m for k in known for m in _spread_to(k, size)]
    bias = draw(st.sampled_from([None, *biases]))
    used = f"{a.name} {b.name} {bias.name if bias else ''}"
    free = [m for m in made if m.size == size and m.name not in used]
    if free and draw(st.booleans()):
        old = draw(st.sampled_from(free))
        made.remove(old)
        out = _Matrix(name, size, old.stride)
        lines.append(f"{name} = {old.name}; del {old.name}  # reuse")
    else:
        out = _Matrix(name, size, (size[1] + draw(st.sampled_from([0, 0, 2])), 1))
        lines.append(f"{name} = empty_strided_cpu({size}, {out.stride}, torch.float64)")
    if bias is None:
        lines.append(f"extern_kernels.mm({a.name}, {b.name}, out={name})")
    else:
        given = f"{bias.name}, {a.name}, {b.name}"
        lines.append(f"extern_kernels.addmm({given}, alpha=1, beta=1, out={name})")
    return out


def _looked_at(draw: Any, m: _Matrix) -> _Matrix:
    return draw(st.sampled_from([m, m.turned(), m.row(m.size[0] - 1)]))


def _spread_to(m: _Matrix, size: tuple[int, int]) -> list[_Matrix]:
    if m.size == size:
        return [m]
    return [m.spread(size[0])] if m.size[1] == size[1] else []


def _returned(draw: Any, m: _Matrix) -> str:
    """A matrix, or seldom only a part of it."""
    return draw(st.sampled_from([m.name, m.name, m.name, m.turned().name, m.row(0).name]))


# --- the calls of a wrapper, without its Python


def given_as(source: int, x: torch.Tensor) -> Strided:
    """A tensor as an input."""
    size, stride = tuple(x.shape), x.stride()
    reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if x.numel() else 0
    return Strided(Memory(reach * x.itemsize, source), 0, size, stride, x.dtype)


def made(*size: int, dtype: torch.dtype = torch.float32, gap: int = 0) -> Strided:
    """A tensor in memory of its own; matrices may have gaps between their rows."""
    stride = [1] * len(size)
    for i in reversed(range(len(size) - 1)):
        stride[i] = stride[i + 1] * size[i + 1] + (gap if i == len(size) - 2 else 0)
    reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    return Strided(Memory(reach * dtype.itemsize), 0, size, tuple(stride), dtype)


def drive(calls, results, inputs, bounds=(), otherwise=None):
    """Return a driver of calls."""
    return Driver(Wrapper(tuple(calls), tuple(results)), inputs, bounds, otherwise)


def product(size=(2, 3, 4), dtypes=(torch.float32,) * 3, **layouts):
    """Return a product of ones with a bias, and its inputs; some may be given."""
    m, k, n = size
    shapes = {"out": (m, n), "a": (m, k), "b": (k, n), "bias": (n,)}
    tensors = {
        name: layouts.get(name, torch.ones(shape, dtype=dtype))
        for (name, shape), dtype in zip(shapes.items(), (*dtypes, dtypes[0]), strict=True)
    }
    inputs = list(tensors.values())
    return MatrixProduct(*(given_as(i, x) for i, x in enumerate(inputs))), inputs
