"""A program's work on the device, recorded once as a CUDA graph and replayed.

A recorded graph reads and writes fixed addresses. So the batch, and gradients from earlier calls,
are copied into persistent buffers, and results are copied out before the next replay overwrites
them. No value in the graphs' memory pool outlives a call, so all variants of a step share one pool.

`GraphDevice` is the interface to CUDA; tests use a device that re-executes the recorded work on the
same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_ALIGNMENT = 64
"""Elements between starts in a slab are a multiple of this: whole cache lines for all dtypes."""


class GraphDevice(Protocol):
    """The interface of a device that can record and replay work."""

    def new_pool(self) -> Any:
        """Return memory for the intermediate values of graphs."""

    def on_side_stream(self, work: Callable[[], Result]) -> Result:
        """Run `work` on a stream on which it can be captured; later work waits for it."""

    def capture(self, work: Callable[[], Result], pool: Any) -> tuple[Callable[[], None], Result]:
        """Record `work` without running it; return its replay function, and its results' memory."""


class CudaDevice:
    """A GPU.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def new_pool(self) -> Any:
        """Return the handle of a new memory pool; see `torch.cuda.graph_pool_handle`."""
        return torch.cuda.graph_pool_handle()

    def on_side_stream(self, work: Callable[[], Result]) -> Result:
        """Run `work` on a separate stream, after the queued work and before later work."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], Result], pool: Any) -> tuple[Callable[[], None], Result]:
        """Record `work`; the device's random generator advances in every replay."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            index = torch.cuda.current_device()
            graph.register_generator_state(torch.cuda.default_generators[index])
            # other threads, such as data loaders, may allocate pinned memory during the capture
            with torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = work()
        return graph.replay, result


class Buffers:
    """The memory that the graphs of a step share: a pool, and slabs for gradients.

    Args:
        device: The device of the memory.
    """

    def __init__(self, device: GraphDevice) -> None:
        self.device = device
        self._pool: Any = None
        self._slabs: dict[tuple[object, ...], Tensor] = {}

    @property
    def pool(self) -> Any:
        """The memory pool."""
        if self._pool is None:
            self._pool = self.device.new_pool()
        return self._pool

    def gradients(self, likes: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
        """Return memory for gradients, the same in every call.

        Args:
            likes: Names of parameters, and dense tensors with size, strides, dtype and device of
                their gradients. Only the metadata is read.
        """
        keys = [(name, *_layout(like)) for name, like in likes]
        missing = {
            key: like for key, (_, like) in zip(keys, likes, strict=True) if key not in self._slabs
        }
        for kind in dict.fromkeys((like.dtype, like.device) for like in missing.values()):
            chosen = {k: v for k, v in missing.items() if (v.dtype, v.device) == kind}
            self._slabs.update(zip(chosen, _slab(list(chosen.values())), strict=True))
        return [self._slabs[key] for key in keys]


@dataclass(frozen=True)
class Plan:
    """A program in two halves, and the treatment of its inputs.

    Attributes:
        body: The device's half: a function from the inputs to its results.
        tail: The host's half, run afterwards: a function of the inputs, then of the body's results.
        fixed: Positions of inputs whose memory is used directly: parameters, buffers.
        copied: Positions of inputs that are copied before the body runs, with their buffers.
        written: Positions among those that the body writes: copied back.
        updated: Positions of fixed inputs that the body writes: every replay bumps their versions.
        prepare: Copies to the device what updates read there. Returns a value that must not change
            for a recorded graph to be valid; None if this call cannot be recorded or replayed.
    """

    body: Callable[..., Sequence[Tensor]]
    tail: Callable[..., Any]
    fixed: tuple[int, ...]
    copied: dict[int, Tensor]
    written: tuple[int, ...]
    updated: tuple[int, ...]
    prepare: Callable[[Sequence[Any]], object]


class Graphed:
    """A program that replays a CUDA graph once it has one.

    The first calls run the ordinary program, until `plan.prepare` returns a value. The next call
    runs the body on a side stream instead. The call after that is recorded and replayed. When
    memory has moved - a parameter was replaced, tables grew - this starts again. If a capture
    fails, `refusal` is the reason, and the ordinary program runs from then on.

    Args:
        ordinary: The program that runs without a CUDA graph.
        plan: The same in two halves.
        buffers: The memory that the graphs of a step share.

    Attributes:
        refusal: Why there will be no graph, or None.
        captures: Number of recorded graphs.
        replays: Number of calls that replayed one.
    """

    def __init__(self, ordinary: Callable[..., Any], plan: Plan, buffers: Buffers) -> None:
        self.refusal: str | None = None
        self.captures = self.replays = 0
        self._ordinary, self._plan, self._buffers = ordinary, plan, buffers
        self._valid_for: object = None
        self._replay: Callable[[], None] | None = None
        self._results: Sequence[Tensor] = ()

    def __call__(self, *inputs: Any) -> Any:
        """Perform the step and return its outputs."""
        plan = self._plan
        prepared = None if self.refusal is not None else plan.prepare(inputs)
        if prepared is None:
            return self._ordinary(*inputs)
        valid_for = (prepared, *[inputs[i].data_ptr() for i in plan.fixed])
        copied = list(plan.copied.items())
        static = list(inputs)
        for i, buffer in copied:
            static[i] = buffer
        _copy([buffer for _, buffer in copied], [inputs[i] for i, _ in copied])
        if self._valid_for != valid_for:
            self._valid_for, self._replay, self._results = valid_for, None, ()
            left = _own(self._buffers.device.on_side_stream(lambda: plan.body(*static)))
        elif self._replay is None and not self._capture(static):
            return self._ordinary(*inputs)
        else:
            assert self._replay is not None
            self._replay()
            self.replays += 1
            left = _own(self._results)
            torch.autograd.graph.increment_version([inputs[i] for i in plan.updated])
        _copy([inputs[i] for i in plan.written], [plan.copied[i] for i in plan.written])
        return plan.tail(*inputs, *left)

    def _capture(self, static: Sequence[Any]) -> bool:
        device, pool = self._buffers.device, self._buffers.pool
        try:
            self._replay, self._results = device.capture(lambda: self._plan.body(*static), pool)
        except Exception as error:  # nothing has run, so the ordinary program can run
            self.refusal = f"the capture fails: {type(error).__name__}: {error}"
            return False
        self.captures += 1
        return True


def _own(results: Sequence[Tensor]) -> list[Tensor]:
    """Return copies with the same strides, which later replays do not overwrite."""
    copies = [
        torch.empty_strided(r.shape, r.stride(), dtype=r.dtype, device=r.device) for r in results
    ]
    _copy(copies, results)
    return copies


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if into:
        torch._foreach_copy_(list(into), list(values))


def _layout(like: Tensor) -> tuple[object, ...]:
    return (tuple(like.shape), like.stride(), like.dtype, like.device)


def _slab(likes: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors like `likes`, of one dtype and device, in one allocation."""
    starts, end = [], 0
    for like in likes:
        starts.append(end)
        end += -(-like.numel() // _ALIGNMENT) * _ALIGNMENT
    memory = torch.zeros(end, dtype=likes[0].dtype, device=likes[0].device)
    return [
        memory.as_strided(like.shape, like.stride(), start)
        for like, start in zip(likes, starts, strict=True)
    ]
