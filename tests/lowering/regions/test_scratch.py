"""Where the memories of a wrapper lie."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from stepgraph.lowering.regions.driver.scratch import assign_offsets
from stepgraph.torch_private import KernelCall, Memory, Strided, Wrapper
from support.inductor_wrappers import made


@st.composite
def wrappers(draw):
    """Calls of kernels on memories of all sizes, some of which come from outside or go there."""
    sizes = draw(
        st.lists(st.sampled_from([0, 1, 4, 63, 64, 65, 100, 640]), min_size=1, max_size=12)
    )
    memories = [Memory(n) for n in sizes] + [Memory(64, i) for i in range(2)]
    tensors = [Strided(m, 0, (m.size_bytes,), (1,), torch.uint8) for m in memories]
    some = st.lists(st.sampled_from(tensors), min_size=1, max_size=4)
    calls = [KernelCall(0, tuple(used)) for used in draw(st.lists(some, max_size=12))]
    results = draw(st.lists(st.sampled_from(tensors[:-2]), max_size=3, unique=True))
    return Wrapper(tuple(calls), tuple(results))


@given(wrappers())
def test_memories_alive_at_the_same_time_share_no_byte(wrapper):
    offsets, total = assign_offsets(wrapper)

    for call_index in range(len(wrapper.calls)):
        before = {t.memory for call in wrapper.calls[: call_index + 1] for t in call.arguments}
        after = {t.memory for call in wrapper.calls[call_index:] for t in call.arguments}
        alive = [m for m in offsets if m in before and m in after]
        for a, b in itertools.combinations(alive, 2):
            mine = range(offsets[a], offsets[a] + a.size_bytes)
            other = range(offsets[b], offsets[b] + b.size_bytes)
            assert not set(mine) & set(other)
    assert all(first % 64 == 0 for first in offsets.values())
    assert all(first + m.size_bytes <= total for m, first in offsets.items())


@given(wrappers())
def test_what_comes_from_outside_or_goes_there_has_no_place(wrapper):
    offsets, _ = assign_offsets(wrapper)

    used = {tensor.memory for call in wrapper.calls for tensor in call.arguments}
    outside = {tensor.memory for tensor in wrapper.results}
    assert set(offsets) == {m for m in used if m.source is None and m not in outside}


def test_memories_that_follow_each_other_share_their_bytes():
    x, one, two, three = (made(64) for _ in range(4))

    offsets, total = assign_offsets(
        Wrapper((KernelCall(0, (one, two)), KernelCall(0, (two, three))), (x,))
    )

    assert offsets[one.memory] == offsets[three.memory]
    assert total == 512
