"""The CUDA graph of a whole variant, or the reasons why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepgraph import config
from stepgraph.lowering import Lowered, graphed, why_not_capturable
from stepgraph.runtime import Buffers, CudaDevice, GraphDevice, Graphed


@dataclass(frozen=True)
class Recording:
    """The CUDA graph of a variant, or the reasons why there is none.

    Attributes:
        graphed: The program that records and replays it, or None.
        reasons: Why there is none.
    """

    graphed: Graphed | None
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = self.reasons
        if self.graphed is not None:
            reasons = () if self.graphed.refusal is None else (self.graphed.refusal,)
            if not reasons:
                return "recorded" if self.graphed.captures else "not recorded yet"
        return f"none: {'; '.join(reasons)}"


class CudaGraphRecorder:
    """Records CUDA graphs of the variants of one compiled step, which share a memory pool."""

    def __init__(self) -> None:
        self._buffers: Buffers | None = None

    def record(
        self,
        lowered: Lowered,
        subjects: Mapping[int, Any],
        inputs: Sequence[Any],
        ordinary: Callable[..., Any],
    ) -> Recording | None:
        """Return the recording of a variant; None without a GPU.

        Args:
            lowered: The lowered graph.
            subjects: The tracked objects that its markers act on, by number.
            inputs: The inputs of the traced call.
            ordinary: The program that runs without a CUDA graph.
        """
        device = device_of(inputs)
        if device is None:
            return None
        if not config.current().cuda_graphs:
            return Recording(None, ("STEPGRAPH_CUDA_GRAPHS=1 records one",))
        reasons = why_not_capturable(lowered.flat, lowered.updates, device=device.type)
        if reasons:
            return Recording(None, tuple(reasons))
        try:
            self._buffers = self._buffers or Buffers(graph_device(device))
            made = graphed(
                lowered.flat, subjects, lowered.updates, ordinary=ordinary, buffers=self._buffers
            )
        except Exception as error:  # `ordinary` runs without a CUDA graph
            return Recording(None, (f"{type(error).__name__}: {error}",))
        return Recording(made)


def device_of(inputs: Sequence[Any]) -> torch.device | None:
    """Return the first GPU among the devices of the inputs."""
    devices = (value.device for value in inputs if isinstance(value, Tensor))
    return next((device for device in devices if device.type == "cuda"), None)


def graph_device(device: torch.device) -> GraphDevice:
    """Return the `GraphDevice` that records on `device`."""
    return CudaDevice(device)
