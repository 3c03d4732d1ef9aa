"""Run the kernel calls of a compiled region in our C++ instead of Inductor's Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stepgraph import torch_private
from stepgraph.lowering.cpp_library import library
from stepgraph.lowering.regions.compiled_run import Function
from stepgraph.lowering.regions.driver.encode import Encoder
from stepgraph.lowering.regions.driver.scratch import assign_offsets
from stepgraph.lowering.regions.indices import Bound
from stepgraph.torch_private import Strided, Unreadable, Wrapper

SCRATCH_BYTES = 4 << 20
"""Largest memory kept between calls: with more, kernels take longer than Inductor's Python."""

_SYMBOLS = "sgemm_", "dgemm_", "MKL_Set_Num_Threads_Local"


def driver_library() -> ModuleType | str:
    """Return the compiled C++ library, or why there is none."""
    return library(Path(__file__).with_name("driver.cpp"), *_SYMBOLS)


def drive(
    compiled: Function, inputs: Sequence[Tensor], bounds: Sequence[Bound], otherwise: Function
) -> Driver:
    """Return a driver equivalent to a wrapper of Inductor's.

    Args:
        compiled: The wrapper, made for fixed layouts of its inputs.
        inputs: Example inputs; only their layouts are read.
        bounds: The bounds of the values of inputs.
        otherwise: The function to run instead if a value is out of bounds.

    Raises:
        Unreadable: A driver does not support a call of the wrapper.
    """
    wrapper = torch_private.read_wrapper(compiled, inputs)
    return Driver(wrapper, inputs, bounds, otherwise)


class Driver:
    """Runs kernels and matrix products on its own memory; results are new tensors.

    Called with a list of inputs: CPU tensors with the layouts for which the wrapper was made. It
    writes the inputs that the wrapper writes.

    Args:
        wrapper: The calls to run.
        inputs: Example inputs; only their layouts are read.
        bounds: The bounds of the values of inputs, checked before anything runs.
        otherwise: The function to run instead if a value is out of bounds.

    Raises:
        Unreadable: A call is not supported.
    """

    def __init__(
        self,
        wrapper: Wrapper,
        inputs: Sequence[Tensor],
        bounds: Sequence[Bound],
        otherwise: Function,
    ) -> None:
        compiled = driver_library()
        if isinstance(compiled, str):
            raise Unreadable(compiled)
        self._run = compiled.run
        results = _without_views(wrapper.results)
        offsets, scratch = assign_offsets(wrapper)
        if scratch > SCRATCH_BYTES:
            raise Unreadable(f"{scratch} bytes between its kernels")
        at = {memory: (len(inputs) + len(results), first) for memory, first in offsets.items()}
        at.update((r.memory, (len(inputs) + i, 0)) for i, r in enumerate(results))
        encoder = Encoder(at)
        for bound in bounds:
            encoder.check_bound(bound, inputs[bound.position])
        self._program = encoder.encode(wrapper)
        self._layouts = tuple((r.size, r.stride, r.dtype) for r in results)
        self._otherwise = otherwise
        self._empty = torch_private.empty_strided_cpu
        self._scratch = torch.empty(scratch, dtype=torch.uint8)
        self._address = self._scratch.data_ptr()

    def __call__(self, inputs: list[Any]) -> Sequence[Any]:
        """Run it; return the results."""
        results: Sequence[Any] | None = self._run(
            self._program, inputs, self._empty, self._layouts, self._address
        )
        return self._otherwise(inputs) if results is None else results


def _without_views(results: Sequence[Strided]) -> Sequence[Strided]:
    """Return the results; refuse a result that does not fill its memory or shares it."""
    memories = {result.memory for result in results}
    if len(memories) < len(results) or any(m.source is not None for m in memories):
        raise Unreadable("results that share memory")
    if any(r.offset or r.end_bytes < r.memory.size_bytes for r in results):
        raise Unreadable("a result that is a part of its memory")
    return results
