"""Compare two trained models and their optimizers bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BitwiseComparison:
    """The number of tensors compared, and the names of those that differ.

    Attributes:
        tensors: Number of tensors compared.
        elements: Number of elements in them.
        different: Names of tensors that differ, or that are missing on one side.
    """

    tensors: int
    elements: int
    different: tuple[str, ...]


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> BitwiseComparison:
    """Compare two snapshots bit by bit, tensor by tensor."""
    names = list(dict.fromkeys([*expected, *found]))
    different = [
        name
        for name in names
        if name not in expected or name not in found or not _same(expected[name], found[name])
    ]
    elements = sum(tensor.numel() for tensor in expected.values())
    return BitwiseComparison(tensors=len(names), elements=elements, different=tuple(different))


def snapshot(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Return every parameter, buffer and optimizer state by name, without copies."""
    found: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, optimizer in optimizers.items():
        found.update(_states(name, optimizer))
    return found


def _states(name: str, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            yield f"{name}.state[{index}][{key!r}]", torch.as_tensor(value)


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare bytes: 0.0 and -0.0 differ, and NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
