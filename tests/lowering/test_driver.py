"""Kernels and matrix products without Python in between, on wrappers written by hand."""

import ctypes
import itertools
import threading

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from stepgraph import torch_private
from stepgraph.lowering.driver import Driver
from stepgraph.lowering.driver import driver as make_driver
from stepgraph.lowering.driver.scratch import place
from stepgraph.lowering.indices import Bound
from stepgraph.lowering.library import library
from stepgraph.torch_private import (
    KernelCall,
    MatrixProduct,
    Memory,
    Strided,
    Unreadable,
    Wrapper,
)
from wrappers import SIZES, drawn_wrappers, matrix, written_by_hand


def given_as(source, x):
    """A tensor as an input."""
    size, stride = tuple(x.shape), x.stride()
    reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if x.numel() else 0
    return Strided(Memory(reach * x.itemsize, source), 0, size, stride, x.dtype)


def made(*size, dtype=torch.float32, gap=0):
    """A tensor in memory of its own; matrices may have gaps between their rows."""
    stride = [1] * len(size)
    for i in reversed(range(len(size) - 1)):
        stride[i] = stride[i + 1] * size[i + 1] + (gap if i == len(size) - 2 else 0)
    reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    return Strided(Memory(reach * dtype.itemsize), 0, size, tuple(stride), dtype)


def drive(calls, results, inputs, bounds=(), otherwise=None):
    """Return a driver of calls."""
    return Driver(Wrapper(tuple(calls), tuple(results)), inputs, bounds, otherwise)


# --- where memories lie


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
    places, total = place(wrapper)

    for call_index in range(len(wrapper.calls)):
        before = {t.memory for call in wrapper.calls[: call_index + 1] for t in call.arguments}
        after = {t.memory for call in wrapper.calls[call_index:] for t in call.arguments}
        alive = [m for m in places if m in before and m in after]
        for a, b in itertools.combinations(alive, 2):
            mine = range(places[a], places[a] + a.size_bytes)
            other = range(places[b], places[b] + b.size_bytes)
            assert not set(mine) & set(other)
    assert all(first % 64 == 0 for first in places.values())
    assert all(first + m.size_bytes <= total for m, first in places.items())


@given(wrappers())
def test_what_comes_from_outside_or_goes_there_has_no_place(wrapper):
    places, _ = place(wrapper)

    used = {tensor.memory for call in wrapper.calls for tensor in call.arguments}
    outside = {tensor.memory for tensor in wrapper.results}
    assert set(places) == {m for m in used if m.source is None and m not in outside}


def test_memories_that_follow_each_other_share_their_bytes():
    x, one, two, three = (made(64) for _ in range(4))

    places, total = place(Wrapper((KernelCall(0, (one, two)), KernelCall(0, (two, three))), (x,)))

    assert places[one.memory] == places[three.memory]
    assert total == 512


# --- matrix products


@st.composite
def operands(draw):
    """A bias or None, a and b of every layout that BLAS takes, of integers: products are exact."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    m, k, n = draw(SIZES), draw(SIZES), draw(SIZES)
    a, b = (_with_odd_strides(draw, matrix(draw, size, dtype)) for size in ((m, k), (k, n)))
    full = matrix(draw, (m, n), dtype)
    biases = [None, full, full[0], full[:1], full[:, :1], full[0, :1], full[0, 0]]
    biases += [full[0].expand(m, n), full[:1].expand(m, n), full[:, :1].expand(m, n)]
    return draw(st.sampled_from(biases)), a, b


def _with_odd_strides(draw, x):
    """The same matrix; a dimension of size 1 may have any stride."""
    strides = [
        draw(st.sampled_from([s, 0, 1, 2, 77])) if n == 1 else s
        for n, s in zip(x.shape, x.stride(), strict=True)
    ]
    return torch.as_strided(x, x.shape, strides, x.storage_offset())


@given(operands(), st.sampled_from([0, 3]))
def test_a_product_is_what_it_is_in_integers(operands, gap):
    bias, a, b = operands
    inputs = [x for x in operands if x is not None]
    named = [given_as(i, x) for i, x in enumerate(inputs)]
    out = made(a.shape[0], b.shape[1], dtype=a.dtype, gap=gap)
    call = MatrixProduct(out, *named[-2:], named[0] if len(named) == 3 else None)

    (result,) = drive([call], [out], inputs)(inputs)

    expected = a.long() @ b.long() + (0 if bias is None else bias.long())
    assert (result.dtype, result.stride()) == (a.dtype, out.stride)
    assert torch.equal(result.long(), expected)


@given(operands())
def test_a_product_writes_its_matrix_and_nothing_beside_it(operands):
    bias, a, b = operands
    m, n = a.shape[0], b.shape[1]
    around = torch.full((m + 2, n + 3), torch.nan, dtype=a.dtype)
    target = around[1:-1, 1:-2]
    inputs = [target, *(x for x in operands if x is not None)]
    out, *named = [given_as(i, x) for i, x in enumerate(inputs)]

    drive([MatrixProduct(out, *named[-2:], named[0] if bias is not None else None)], [], inputs)(
        inputs
    )

    assert not target.isnan().any()
    assert around.isnan().sum() == around.numel() - target.numel()


def test_infinities_that_were_in_memory_do_not_show():
    inputs = [torch.full((2, 2), torch.inf), torch.ones(2, 3), torch.ones(3, 2), torch.ones(2)]
    out, a, b, bias = (given_as(i, x) for i, x in enumerate(inputs))

    drive([MatrixProduct(out, a, b)], [], inputs)(inputs)
    assert torch.equal(inputs[0], torch.full((2, 2), 3.0))
    inputs[0].fill_(torch.nan)
    drive([MatrixProduct(out, a, b, bias)], [], inputs)(inputs)
    assert torch.equal(inputs[0], torch.full((2, 2), 4.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(7, 300, 9), (65, 64, 33), (256, 300, 130)])
def test_a_large_product_is_as_exact_as_its_numbers(size, dtype):
    m, k, n = size
    a, b = torch.randn(k, m, dtype=dtype).t(), torch.randn(k, n, dtype=dtype)
    out = made(m, n, dtype=dtype)

    (result,) = drive([MatrixProduct(out, given_as(0, a), given_as(1, b))], [out], [a, b])([a, b])

    error = (result.double() - a.double() @ b.double()).abs().max()
    assert error <= k * torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs()).max()


def test_products_of_products_go_through_memory_that_is_kept():
    x, w = torch.randn(4, 5), torch.randn(5, 5)
    named, weight = given_as(0, x), given_as(1, w)
    steps = [made(4, 5) for _ in range(6)]
    calls = [MatrixProduct(out, a, weight) for a, out in itertools.pairwise([named, *steps])]
    run = drive(calls, steps[-1:], [x, w])

    results = [run([x * i, w])[0] for i in range(3)]

    for i, result in enumerate(results):
        expected = (x * i).double() @ torch.linalg.matrix_power(w.double(), 6)
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
    assert place(Wrapper(tuple(calls), tuple(steps[-1:])))[1] <= 2 * 128


def test_two_threads_may_use_one_driver_at_once():
    w = torch.eye(8)
    between = [made(8, 8) for _ in range(6)]
    tensors = [given_as(0, w), *between]
    calls = [MatrixProduct(out, a, given_as(1, w)) for a, out in itertools.pairwise(tensors)]
    run = drive(calls, between[-1:], [w, w])
    wrong = []

    def use(number):
        x = torch.full((8, 8), float(number))
        wrong.extend(i for i in range(3000) if not torch.equal(run([x, w])[0], x))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_the_results_of_ten_calls_are_ten_tensors():
    x, w = torch.zeros(2, 2), torch.eye(2)
    out = made(2, 2)
    run = drive([MatrixProduct(out, given_as(0, x), given_as(1, w))], [out], [x, w])

    kept = [run([torch.full((2, 2), float(i)), w])[0] for i in range(10)]

    assert [result[0, 0].item() for result in kept] == list(range(10))


@given(drawn_wrappers())
def test_a_driver_does_what_the_wrapper_does(drawn):
    compiled = written_by_hand(drawn.body)
    expected = compiled(list(drawn.inputs))

    try:
        run = make_driver(compiled, drawn.inputs, (), compiled)
    except Unreadable as reason:
        event(str(reason))
        return

    for _ in range(2):
        results = run(list(drawn.inputs))
        assert len(results) == len(expected)
        for mine, other in zip(results, expected, strict=True):
            assert mine.stride() == other.stride()
            assert torch.equal(mine, other)


def product(size=(2, 3, 4), dtypes=(torch.float32,) * 3, **layouts):
    m, k, n = size
    shapes = {"out": (m, n), "a": (m, k), "b": (k, n), "bias": (n,)}
    tensors = {
        name: layouts.get(name, torch.ones(shape, dtype=dtype))
        for (name, shape), dtype in zip(shapes.items(), (*dtypes, dtypes[0]), strict=True)
    }
    inputs = list(tensors.values())
    return MatrixProduct(*(given_as(i, x) for i, x in enumerate(inputs))), inputs


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (product(dtypes=(torch.bfloat16,) * 3), "other numbers"),
        (product(dtypes=(torch.int64,) * 3), "other numbers"),
        (product(dtypes=(torch.float32, torch.float32, torch.float64)), "other numbers"),
        (product(bias=torch.ones(4, dtype=torch.float64)), "other numbers"),
        (product((0, 3, 4)), "empty"),
        (product((2, 0, 4)), "empty"),
        (product((2, 3, 0)), "empty"),
        (product(a=torch.ones(4, 6)[::2, ::2]), "both have gaps"),
        (product(b=torch.ones(1, 4).expand(3, 4)), "both have gaps"),
        (product(a=torch.ones(9).as_strided((2, 3), (2, 1))), "both have gaps"),
        (product(out=torch.ones(4, 2).t()), "into columns"),
        (product(a=torch.ones(2, 2)), "do not fit"),
        (product(out=torch.ones(2, 3)), "do not fit"),
        (product(bias=torch.ones(3)), "do not fit"),
        (product(bias=torch.ones(3, 4)), "do not fit"),
        (product(bias=torch.ones(1, 2, 4)), "do not fit"),
        (product(a=torch.ones(3)), "other things than matrices"),
        (product(b=torch.ones(1, 3, 4)), "other things than matrices"),
        (product(a=torch.empty(1).expand(2, 3)), "both have gaps"),
        (product(a=torch.empty_strided((2, 3), (1 << 31, 1), device="meta")), "too large"),
    ],
)
def test_a_product_that_blas_does_not_compute_is_refused(given, reason):
    call, inputs = given

    with pytest.raises(Unreadable, match=reason):
        drive([call], [], inputs)


def test_a_product_into_its_own_operand_is_refused():
    call, inputs = product((2, 2, 2), bias=torch.ones(2, 2))

    for operand in (call.a, call.b, call.bias):
        with pytest.raises(Unreadable, match="its operands"):
            drive([MatrixProduct(operand, call.a, call.b, call.bias)], [], inputs)


# --- kernels: functions of C are made of Python's here


def _kernel(function, count):
    """A C function of addresses that Python carries out; keep it alive."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(function)


def _address(function):
    return ctypes.cast(function, ctypes.c_void_p).value


@pytest.mark.parametrize("count", [0, 1, 2, 7, 127, 128])
def test_a_kernel_gets_its_addresses_in_order(count):
    seen = []
    kernel = _kernel(lambda *addresses: seen.append(addresses), count)
    inputs = [torch.ones(3) for _ in range(count)]
    tensors = [given_as(i, x) for i, x in enumerate(inputs)]

    drive([KernelCall(_address(kernel), tuple(reversed(tensors)))], [], inputs)(inputs)

    assert seen == [tuple(x.data_ptr() for x in reversed(inputs))]


def test_a_kernel_of_more_arguments_is_refused():
    inputs = [torch.ones(3) for _ in range(129)]
    tensors = tuple(given_as(i, x) for i, x in enumerate(inputs))

    with pytest.raises(Unreadable, match="129 arguments"):
        drive([KernelCall(0, tensors)], [], inputs)


def test_a_view_is_an_address_within_its_memory():
    seen = []
    kernel = _kernel(lambda *addresses: seen.append(addresses), 4)
    base = torch.ones(10, dtype=torch.float64)
    x, out, between = given_as(0, base[2:]), made(4), made(8)
    views = [
        Strided(x.memory, 3, (2,), (1,), x.dtype),
        Strided(out.memory, 1, (2,), (1,), out.dtype),
        Strided(between.memory, 5, (2,), (1,), between.dtype),
    ]
    run = drive([KernelCall(_address(kernel), (*views, between))], [out], [base[2:]])

    (result,) = run([base[2:]])

    (first, second, third, fourth) = seen[0]
    assert first == base.data_ptr() + 5 * 8
    assert second == result.data_ptr() + 4
    assert third == fourth + 5 * 4


def test_more_memory_than_a_cache_holds_is_refused():
    between = made(2 << 20)

    with pytest.raises(Unreadable, match="8388608 bytes"):
        drive([KernelCall(0, (between,))], [], [])


# --- threads


@pytest.fixture
def shared_by():
    """MKL's: set how many threads share a product of this thread; returns what it was."""
    mkl = ctypes.CDLL(torch._C.__file__)
    if not hasattr(mkl, "MKL_Set_Num_Threads_Local"):
        pytest.skip("torch is linked with another BLAS")
    yield mkl.MKL_Set_Num_Threads_Local
    mkl.MKL_Set_Num_Threads_Local(0)


@pytest.mark.parametrize(("k", "threads"), [(16, 1), (1 << 15, 0)])
def test_threads_share_large_products_only_and_afterwards_what_they_did(k, threads, shared_by):
    asked = []

    def ask():
        asked.append(shared_by(0))
        shared_by(asked[-1])

    kernel = _kernel(ask, 0)
    a, b, out = torch.ones(16, k), torch.ones(k, 16), made(16, 16)
    run = drive(
        [MatrixProduct(out, given_as(0, a), given_as(1, b)), KernelCall(_address(kernel), ())],
        [out],
        [a, b],
    )
    shared_by(2)

    run([a, b])

    assert asked == [threads]
    assert shared_by(0) == 2


# --- results


def test_results_that_share_memory_are_refused():
    out, x = made(4), given_as(0, torch.ones(4))

    for results in ([out, out], [x], [out, Strided(out.memory, 0, (2, 2), (2, 1), out.dtype)]):
        with pytest.raises(Unreadable, match="share memory"):
            drive([KernelCall(0, (out, x))], results, [torch.ones(4)])


@pytest.mark.parametrize(("offset", "size"), [(0, 3), (1, 3), (2, 2)])
def test_a_result_that_is_a_part_of_its_memory_is_refused(offset, size):
    whole = made(4)
    part = Strided(whole.memory, offset, (size,), (1,), whole.dtype)

    with pytest.raises(Unreadable, match="a part of its memory"):
        drive([KernelCall(0, (whole,))], [part], [])


def test_an_empty_result_and_no_result_are_returned():
    x = torch.ones(2)

    assert tuple(drive([], [], [x])([x])) == ()
    (empty,) = drive([], [Strided(Memory(0), 0, (0, 3), (3, 1), torch.int64)], [x])([x])
    assert (empty.shape, empty.stride(), empty.dtype) == ((0, 3), (3, 1), torch.int64)


def test_something_else_than_a_tensor_is_an_error_of_python():
    x = torch.ones(2, 2)
    run = drive([MatrixProduct(made(2, 2), given_as(0, x), given_as(0, x))], [], [x])

    with pytest.raises(RuntimeError, match="non-tensor"):
        run([3])


# --- indices


INDICES = st.lists(st.sampled_from([-101, -100, -4, -3, -1, 0, 1, 3, 4, 100]), max_size=5)
BOUNDS = st.sampled_from(
    [Bound(0, 0, 4, None), Bound(0, 0, 4, -100), Bound(0, -3, 3, None), Bound(0, 0, 1, 100)]
)


@given(INDICES, BOUNDS, st.sampled_from([torch.int32, torch.int64]))
def test_nothing_runs_with_indices_out_of_bounds(values, bound, dtype):
    index, target, ones = torch.tensor(values, dtype=dtype), torch.zeros(2, 2), torch.ones(2, 2)
    inputs = [index, target, ones]
    asked = []

    def otherwise(given):
        asked.append(given)
        return ["eager"]

    out, operand = given_as(1, target), given_as(2, ones)
    run = drive([MatrixProduct(out, operand, operand)], [], inputs, [bound], otherwise)

    results = run(inputs)

    allowed = all(bound.low <= i < bound.high or i == bound.ignored for i in values)
    assert (results == ["eager"]) == (not allowed)
    assert asked == ([] if allowed else [inputs])
    assert torch.equal(target, torch.full((2, 2), 2.0 if allowed else 0.0))


def test_every_index_is_looked_at_before_anything_runs():
    first, second, target = torch.tensor([1]), torch.tensor([0, 9]), torch.zeros(1, 1)
    inputs = [first, second, target, torch.ones(1, 1)]
    out, operand = given_as(2, target), given_as(3, inputs[3])
    bounds = [Bound(0, 0, 2, None), Bound(1, 0, 2, None)]
    run = drive([MatrixProduct(out, operand, operand)], [], inputs, bounds, lambda _: "eager")

    assert run(inputs) == "eager"
    assert target.item() == 0
    second[1] = 1
    assert run(inputs) == ()
    assert target.item() == 1
    first[0] = -1
    assert run(inputs) == "eager"


@pytest.mark.parametrize(
    ("index", "bound", "reason"),
    [
        (torch.ones(2, dtype=torch.int16), Bound(0, 0, 4, None), "unusual layout"),
        (torch.ones(2, dtype=torch.uint8), Bound(0, 0, 4, None), "unusual layout"),
        (torch.ones(4, dtype=torch.int64)[::2], Bound(0, 0, 4, None), "unusual layout"),
        (torch.ones(2, dtype=torch.int64), Bound(0, 0, 0, None), "into nothing"),
        (torch.ones(2, dtype=torch.int64), Bound(0, 0, 0, -100), "into nothing"),
    ],
)
def test_indices_it_cannot_look_at_are_refused(index, bound, reason):
    with pytest.raises(Unreadable, match=reason):
        drive([], [], [index], [bound])


# --- without a compiler, without BLAS


@pytest.fixture
def no_library():
    """Forget what was compiled, before and after."""
    library.cache_clear()
    yield
    library.cache_clear()


def test_without_a_compiler_there_is_no_driver(monkeypatch, no_library):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch_private, "load_cpp", refuse)

    with pytest.raises(Unreadable, match=r"^no C\+\+ compiler$"):
        drive([], [], [])


def test_without_blas_there_is_no_driver_and_those_made_before_go_on(monkeypatch, no_library):
    call, inputs = product()
    before = drive([call], [], inputs)
    monkeypatch.setattr(torch_private.cpp, "_address", lambda symbol: 0)
    library.cache_clear()

    with pytest.raises(Unreadable, match="no BLAS of the usual names"):
        drive([call], [], inputs)
    inputs[0].zero_()
    before(inputs)
    assert torch.equal(inputs[0], torch.full((2, 4), 4.0))
