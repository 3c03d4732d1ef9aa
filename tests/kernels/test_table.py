"""The chunk map covers every element once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepgraph_kernels.layouts import LAYOUTS
from stepgraph_kernels.spec import Rule, Target, Tuning
from stepgraph_kernels.table import bucket_of, chunk_size, grad_kind, partial_places, split

NUMELS = st.lists(st.integers(0, 9000), min_size=1, max_size=20)


@given(numels=NUMELS, buckets=st.randoms(), chunk=st.sampled_from([16, 2048, None]))
def test_chunks_cover_every_element_once_in_its_bucket(numels, buckets, chunk):
    where = [buckets.randrange(3) for _ in numels]

    chunks = split(numels, where, 3, chunk)

    covered = [[] for _ in numels]
    for tensor, offset, length in zip(chunks.tensor, chunks.offset, chunks.length, strict=True):
        covered[tensor].append((offset, length))
        assert offset % 16 == 0
        assert length > 0
    for numel, spans in zip(numels, covered, strict=True):
        reached = 0
        for offset, length in sorted(spans):
            assert offset == reached
            reached += length
        assert reached == numel
    for bucket, (first, count) in enumerate(chunks.ranges):
        inside = range(first, first + count)
        assert all(where[chunks.tensor[i]] == bucket for i in inside)
        lengths = [chunks.length[i] for i in inside]
        assert lengths == sorted(lengths, reverse=True)


def test_offsets_do_not_wrap():
    chunks = split([3 * 2**31 + 1], [0], 1, None)

    assert max(chunks.offset) + 1 == 3 * 2**31 + 1


@pytest.mark.parametrize(
    ("total", "size"), [(1, 2048), (10_000_000, 16384), (124_000_000, 65536), (10**9, 65536)]
)
def test_chunks_are_large_enough_to_be_worth_it_and_small_enough_to_fill_a_gpu(total, size):
    assert chunk_size(total) == size


@given(numels=NUMELS, chunk=st.sampled_from([16, 2048]))
def test_partial_sums_of_a_tensor_lie_side_by_side_in_order(numels, chunk):
    chunks = split(numels, [i % 2 for i in range(len(numels))], 2, chunk)

    places = partial_places(chunks, len(numels))

    assert sorted(places.chunk) == list(range(len(chunks.tensor)))
    for tensor, numel in enumerate(numels):
        mine = [i for i, owner in enumerate(chunks.tensor) if owner == tensor]
        assert places.count[tensor] == len(mine) == -(-numel // chunk)
        for i in mine:
            assert places.chunk[i] == places.tensor[tensor] + chunks.offset[i] // chunk


def made(layout, start=0):
    """A target whose tensors all start `start` elements into an allocation."""

    def tensor(dtype):
        return torch.zeros(64, dtype=dtype)[start : start + 32]

    return Target(
        tensor(layout.param),
        tensor(layout.grad),
        {"a": tensor(layout.state), "b": tensor(layout.state)},
        shadow=None if layout.shadow is None else tensor(layout.shadow),
        average=tensor(torch.float32) if layout.averaged else None,
    )


@pytest.mark.parametrize("narrow_hint", [8, 16])
@pytest.mark.parametrize("start", [0, 1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_no_pointer_is_promised_an_alignment_it_does_not_have(layout, start, narrow_hint):
    """A wrong promise is a fault on a GPU, and nothing at all in the interpreter."""
    target = made(layout, start)

    bucket = bucket_of(target, Rule(None, ("a", "b")), "keep", Tuning(narrow_hint=narrow_hint))

    roles = [[target.param], [target.grad], list(target.state.values())]
    roles += [[target.shadow], [target.average]]
    for promised, tensors in zip(bucket.alignments, roles, strict=True):
        assert all(t is None or t.data_ptr() % promised == 0 for t in tensors)
    if start == 0:
        assert set(bucket.alignments) <= {narrow_hint, 16}
    assert (grad_kind(target) >= 3) == (target.grad.data_ptr() % 16 != 0)


def test_narrow_pointers_beside_wide_ones_have_as_many_elements_in_a_vector():
    alignments = {
        layout.name: bucket_of(made(layout), Rule(None, ("a", "b")), "keep", Tuning()).alignments
        for layout in LAYOUTS
    }

    assert alignments["float32"][:3] == (16, 16, 16)
    assert alignments["bf16 gradients"][:3] == (16, 8, 16)
    assert alignments["all bf16"][:3] == (16, 16, 16)
