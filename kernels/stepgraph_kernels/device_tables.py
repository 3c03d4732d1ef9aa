"""The tables of `table.py` on the device, where the launches read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepgraph_kernels.spec import Family, Target, Tuning
from stepgraph_kernels.table import Bucket, Chunks, grad_kind, partial_places, split


@dataclass(frozen=True)
class _Norms:
    """Where the norms of single tensors are added up; see `measure_kernel`."""

    chunk_place: Tensor
    tensor_place: Tensor
    tensor_chunks: Tensor
    arrivals: Tensor
    partials: Tensor


@dataclass(frozen=True)
class Tables:
    """The layout of one set of targets, on the device. Addresses are patched, the rest stays."""

    addresses: Tensor
    grad_kind: Tensor
    tensor_group: Tensor
    chunk_tensor: Tensor
    chunk_offset: Tensor
    chunk_length: Tensor
    coefficients: Tensor
    buckets: list[Bucket]
    ranges: list[tuple[int, int]]
    kinds: int
    norms: _Norms


def build_tables(
    family: Family,
    targets: Sequence[Target],
    buckets: Sequence[Bucket],
    addresses: list[list[int]],
    *,
    tuning: Tuning,
    device: torch.device,
) -> Tables:
    """Lay out a set of targets on the device, without waiting for it.

    Args:
        family: The optimizer; says how many coefficients a tensor has.
        targets: The tensors.
        buckets: Of each target.
        addresses: As `address_rows` returns them.
        tuning: Its `chunk` is what a program gets.
        device: Of the targets.
    """
    distinct = list(dict.fromkeys(buckets))
    numbers = [distinct.index(bucket) for bucket in buckets]
    numels = [target.param.numel() for target in targets]
    chunks = split(numels, numbers, len(distinct), tuning.chunk)
    kinds = [grad_kind(target) for target in targets]
    rows = 2 + family.coefficients
    put = uploader(device)
    return Tables(
        addresses=put(addresses, torch.int64),
        grad_kind=put(kinds, torch.int32),
        tensor_group=put([target.group for target in targets], torch.int32),
        chunk_tensor=put(chunks.tensor, torch.int32),
        chunk_offset=put(chunks.offset, torch.int64),
        chunk_length=put(chunks.length, torch.int32),
        coefficients=torch.zeros(rows, len(targets), dtype=torch.float32, device=device),
        buckets=distinct,
        ranges=chunks.ranges,
        kinds=sum(1 << kind for kind in set(kinds)),
        norms=_build_norms(chunks, len(targets), device),
    )


def _build_norms(chunks: Chunks, tensors: int, device: torch.device) -> _Norms:
    places = partial_places(chunks, tensors)
    put = uploader(device)
    return _Norms(
        chunk_place=put(places.chunk, torch.int32),
        tensor_place=put(places.tensor, torch.int32),
        tensor_chunks=put(places.count, torch.int32),
        arrivals=torch.zeros(tensors, dtype=torch.int32, device=device),
        partials=torch.zeros(2, len(chunks.tensor), dtype=torch.float32, device=device),
    )


def overwrite(values: Any, *, into: Tensor) -> None:
    """Overwrite a tensor on the device without waiting for it."""
    into.copy_(uploader(into.device)(values, into.dtype))


def uploader(device: torch.device) -> Callable[[Any, torch.dtype], Tensor]:
    """Make tensors on a device without waiting for it."""

    def put(values: Any, dtype: torch.dtype) -> Tensor:
        host = torch.tensor(values, dtype=dtype)
        if device.type == "cpu":
            return host
        return host.pin_memory().to(device, non_blocking=True)

    return put
