"""Reduce gradients between processes, once for each window, and broadcast buffers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepgraph.capture import Forbidden
from stepgraph.train.optimization.optimizers import tracing

REASON = "all-reduces gradients between processes"


class GradientSync:
    """Averages gradients over all processes.

    Gradients are summed in one flat buffer for each dtype and device, together with one flag for
    each parameter: whether this process has a gradient. A missing gradient counts as zero if
    another process has one; if no process has one, it stays None.

    To average an averaged gradient again changes nothing, so a second backward before the update
    may reduce the whole gradient again.

    Attributes:
        reductions: Number of all-reduces so far.
    """

    def __init__(self) -> None:
        self.world_size = dist.get_world_size()
        self.reductions = 0
        self.untraceable = Forbidden(REASON)

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of those `parameters` that require one, in place."""
        if tracing():
            self.untraceable.refuse()
        groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for group in groups.values():
            self._reduce_group(group)

    def _reduce_group(self, group: list[nn.Parameter]) -> None:
        flags = torch.tensor([float(p.grad is not None) for p in group])
        pieces = [_gradient_or_zeros(p).reshape(-1) for p in group]
        flat = torch.cat([*pieces, flags.to(pieces[0])])
        dist.all_reduce(flat)
        self.reductions += 1
        used = flat[-len(group) :].tolist()
        flat /= self.world_size
        offset = 0
        for parameter, count in zip(group, used, strict=True):
            piece = flat[offset : offset + parameter.numel()]
            offset += parameter.numel()
            if count:
                _store(parameter, piece.view(parameter.shape))


def _gradient_or_zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _store(parameter: nn.Parameter, value: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = value.clone()
    else:
        parameter.grad.copy_(value)


def share(tensors: Iterable[Tensor]) -> None:
    """Copy the first process's tensors to all, in one broadcast for each dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    with torch.no_grad():
        for group in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.broadcast(flat, 0)
            pieces = flat.split([tensor.numel() for tensor in group])
            for tensor, piece in zip(group, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))
