"""Our own C++: compiled by Inductor's builder into its cache, called with Python tensors."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import guards

_guards: Any = guards  # the functions used here have no type annotations
empty_strided_cpu = _guards._empty_strided_cpu
"""Makes a tensor: `(size, stride, dtype)`; faster than `torch.empty_strided`."""


def load_cpp(source: str, symbols: Sequence[str] = ()) -> ModuleType:
    """Compile a Python extension, or load it from the cache.

    Args:
        source: C++ that defines `PyInit_kernel` and a method `bind`, which receives the address of
            a function from a tensor object to its memory, `void* (*)(PyObject*)`, then `symbols`.
        symbols: C functions of the libraries torch is linked with, by name; 0 if there is none.

    Raises:
        Exception: Any exception of the compiler; also if there is none.
    """
    code_cache: Any = importlib.import_module("torch._inductor.codecache")
    module: ModuleType = code_cache.CppPythonBindingsCodeCache.load(source)
    module.bind(_guards._torchinductor_pyobject_tensor_data_ptr, *map(_address, symbols))
    return module


def _address(symbol: str) -> int:
    function: Any = getattr(ctypes.CDLL(torch._C.__file__), symbol, None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Layout:
    """Types, dtypes, devices, sizes and strides of tensors, for a fast comparison in C++.

    Args:
        tensors: Tensors of this layout.

    Attributes:
        count: The number of tensors.
        check: Takes as many objects; returns whether they are tensors of this layout.

    Example:
        >>> layout = Layout([torch.ones(2), torch.ones(2, 3)])
        >>> layout.check(torch.ones(2), torch.zeros(2, 3))
        True
        >>> layout.check(torch.ones(2), torch.zeros(3, 2))
        False
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.count = len(tensors)
        self.check: Callable[..., bool] = guards.TensorGuards(
            *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
        ).check


written: Callable[[Sequence[Tensor]], None] = torch._C._increment_version
"""Bumps the version counters of tensors that were written without autograd."""
