"""Where everything is: the chunk map and the table of addresses that both launches read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepgraph_kernels.spec import Family, GradientsAfter, Rule, Target, Tuning

ROLES = 9  # param, grad, three states, shadow, average, two counters
LARGEST_CHUNK = 65536
SMALLEST_CHUNK = 2048
WANTED_CHUNKS = 1024  # eight for each multiprocessor of a large GPU


@dataclass(frozen=True)
class Bucket:
    """What one launch of the sweep is compiled for: one rule, one choice of dtypes and alignments.

    Attributes:
        rule: The elementwise rule.
        dtypes: Of param, grad, state and shadow; None where there is none.
        alignments: In bytes, of param, grad, state, shadow and average.
        averaged: Whether there is an average.
        grads: What becomes of the gradients.
    """

    rule: Rule
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None, torch.dtype | None]
    alignments: tuple[int, int, int, int, int]
    averaged: bool
    grads: GradientsAfter


@dataclass(frozen=True)
class Chunks:
    """The pieces of all tensors, sorted by bucket; inside a bucket the longest come first.

    Attributes:
        tensor: Which tensor, one entry for each chunk.
        offset: Its first element in that tensor; a multiple of 16.
        length: Its number of elements.
        ranges: For each bucket its first chunk and its number of chunks.
    """

    tensor: list[int]
    offset: list[int]
    length: list[int]
    ranges: list[tuple[int, int]]


@dataclass(frozen=True)
class Places:
    """Where partial sums go: those of one tensor side by side, in the order of its elements.

    Attributes:
        chunk: The place of each chunk.
        tensor: The first place of each tensor.
        count: How many places each tensor has.
    """

    chunk: list[int]
    tensor: list[int]
    count: list[int]


def bucket_of(target: Target, rule: Rule, grads: GradientsAfter, tuning: Tuning) -> Bucket:
    """Find the variant of the sweep that a target needs."""
    state = [target.state[name] for name in rule.states]
    roles: list[Sequence[Tensor | None]]
    roles = [[target.param], [target.grad], state, [target.shadow], [target.average]]
    present = [[t for t in role if t is not None] for role in roles]
    mixed = len({t.element_size() for role in present for t in role}) > 1
    alignments = [_alignment(role, mixed, tuning) for role in present]
    return Bucket(
        rule=rule,
        dtypes=(
            target.param.dtype,
            target.grad.dtype,
            state[0].dtype if state else None,
            target.shadow.dtype if target.shadow is not None else None,
        ),
        alignments=(alignments[0], alignments[1], alignments[2], alignments[3], alignments[4]),
        averaged=target.average is not None,
        grads=grads,
    )


def split(numels: Sequence[int], buckets: Sequence[int], count: int, chunk: int | None) -> Chunks:
    """Cut tensors into chunks.

    Args:
        numels: Elements of each tensor; zero gives no chunk.
        buckets: The bucket of each tensor, in `range(count)`.
        count: How many buckets there are.
        chunk: Elements of a chunk, a multiple of 16; None chooses by the total.
    """
    size = chunk if chunk is not None else chunk_size(sum(numels))
    pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(count)]
    for tensor, (numel, bucket) in enumerate(zip(numels, buckets, strict=True)):
        pieces[bucket].extend(
            (tensor, offset, min(size, numel - offset)) for offset in range(0, numel, size)
        )
    ordered: list[tuple[int, int, int]] = []
    ranges: list[tuple[int, int]] = []
    for bucket_pieces in pieces:
        ranges.append((len(ordered), len(bucket_pieces)))
        ordered.extend(sorted(bucket_pieces, key=lambda piece: -piece[2]))
    return Chunks(
        tensor=[piece[0] for piece in ordered],
        offset=[piece[1] for piece in ordered],
        length=[piece[2] for piece in ordered],
        ranges=ranges,
    )


def partial_places(chunks: Chunks, tensors: int) -> Places:
    """Find a place for the partial sums of each chunk."""
    order = sorted(range(len(chunks.tensor)), key=lambda i: (chunks.tensor[i], chunks.offset[i]))
    place = [0] * len(order)
    first, count = [0] * tensors, [0] * tensors
    for position, index in enumerate(order):
        tensor = chunks.tensor[index]
        place[index] = position
        if count[tensor] == 0:
            first[tensor] = position
        count[tensor] += 1
    return Places(place, first, count)


def chunk_size(total: int) -> int:
    """Choose the elements of a chunk: enough chunks to fill a GPU, none too small to be worth it.

    Depends on the number of elements and on nothing else, so that a norm, whose terms are added
    chunk by chunk, is the same on every device.
    """
    size = SMALLEST_CHUNK
    while size < LARGEST_CHUNK and size * WANTED_CHUNKS < total:
        size *= 2
    return size


def address_rows(
    family: Family, rules: Sequence[Rule], targets: Sequence[Target], counters: Sequence[Tensor]
) -> list[list[int]]:
    """Addresses as `[ROLES][tensors]`, zero where a target has nothing in a role.

    Args:
        family: Gives the names of the counters.
        rules: The rule of each target.
        targets: The tensors.
        counters: Stands in for the first counter of a target whose state has none.
    """
    rows = [[0] * len(targets) for _ in range(ROLES)]
    for index, (rule, target) in enumerate(zip(rules, targets, strict=True)):
        rows[0][index] = target.param.data_ptr()
        rows[1][index] = target.grad.data_ptr()
        for place, name in enumerate(rule.states):
            rows[2 + place][index] = target.state[name].data_ptr()
        if target.shadow is not None:
            rows[5][index] = target.shadow.data_ptr()
        if target.average is not None:
            rows[6][index] = target.average.data_ptr()
        for place, name in enumerate(family.counters):
            counter = target.state.get(name, counters[index])
            rows[7 + place][index] = counter.data_ptr()
    return rows


def grad_kind(target: Target) -> int:
    """Number the dtype and alignment of a gradient as the first launch does."""
    kind = (torch.float32, torch.bfloat16, torch.float16).index(target.grad.dtype)
    return kind if target.grad.data_ptr() % 16 == 0 else kind + 3


def _alignment(tensors: Sequence[Tensor], mixed: bool, tuning: Tuning) -> int:
    """Promise 16 bytes if all keep it (8 for 16-bit tensors among 32-bit ones), else an element."""
    if not tensors:
        return 16
    size = tensors[0].element_size()
    promise = tuning.narrow_hint if mixed and size == 2 else 16
    kept = all(tensor.data_ptr() % promise == 0 for tensor in tensors)
    return promise if kept else size
