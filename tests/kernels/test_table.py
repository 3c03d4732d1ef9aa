"""The chunk map covers every element once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepgraph_kernels.table import chunk_size, partial_places, split

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
