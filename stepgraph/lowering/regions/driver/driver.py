"""A compiled region's calls, run by C++ of our own instead of Inductor's Python."""

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
from stepgraph.lowering.regions.driver.scratch import place
from stepgraph.lowering.regions.indices import Bound
from stepgraph.torch_private import Strided, Unreadable, Wrapper

SCRATCH_BYTES = 4 << 20
"""More than this is not kept between calls, and on as much kernels take longer than a wrapper."""

_SYMBOLS = "sgemm_", "dgemm_", "MKL_Set_Num_Threads_Local"


def driver_library() -> ModuleType | str:
    """Return the C++ that runs programs, or why there is none."""
    return library(Path(__file__).with_name("driver.cpp"), *_SYMBOLS)


def drive(
    compiled: Function, inputs: Sequence[Tensor], bounds: Sequence[Bound], otherwise: Function
) -> Driver:
    """Return a driver that does what a wrapper of Inductor's does.

    Args:
        compiled: The wrapper, made for fixed layouts of its inputs.
        inputs: Tensors as it takes them; only their layouts are read.
        bounds: What the values of inputs must satisfy.
        otherwise: What runs in its place if they do not.

    Raises:
        Unreadable: The wrapper does what a driver cannot do.
    """
    wrapper = torch_private.read_wrapper(compiled, inputs)
    return Driver(wrapper, inputs, bounds, otherwise)


class Driver:
    """Runs kernels and matrix products on memory of its own; results are new tensors.

    Called with a list of inputs, tensors on the CPU of the layouts that the wrapper is for. It
    writes the inputs that the wrapper writes.

    Args:
        wrapper: What to do.
        inputs: Tensors as it takes them; only their layouts are read.
        bounds: What the values of inputs must satisfy; it looks before anything runs.
        otherwise: What runs in its place if they do not.

    Raises:
        Unreadable: There is something it cannot do.
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
        results = _whole(wrapper.results)
        places, scratch = place(wrapper)
        if scratch > SCRATCH_BYTES:
            raise Unreadable(f"{scratch} bytes between its kernels")
        at = {memory: (len(inputs) + len(results), first) for memory, first in places.items()}
        at.update((r.memory, (len(inputs) + i, 0)) for i, r in enumerate(results))
        encoder = Encoder(at)
        for bound in bounds:
            encoder.look(bound, inputs[bound.position])
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


def _whole(results: Sequence[Strided]) -> Sequence[Strided]:
    """Return the results, each of which is all there is in its memory."""
    memories = {result.memory for result in results}
    if len(memories) < len(results) or any(m.source is not None for m in memories):
        raise Unreadable("results that share memory")
    if any(r.offset or r.end_bytes < r.memory.size_bytes for r in results):
        raise Unreadable("a result that is a part of its memory")
    return results
