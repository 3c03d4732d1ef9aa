"""Kernels, results and indices without Python in between, on calls written by hand."""

import ctypes

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepgraph import torch_private
from stepgraph.lowering.cpp_library import library
from stepgraph.lowering.regions.indices import Bound
from stepgraph.torch_private import KernelCall, MatrixProduct, Memory, Strided, Unreadable
from support.inductor_wrappers import drive, given_as, made, product

# --- kernels: functions of C are made of Python's here


def _kernel(function, count):
    """A C function of addresses that Python carries out; keep it alive."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(function)


def _address(function):
    return ctypes.cast(function, ctypes.c_void_p).value


@pytest.mark.parametrize("count", [0, 1, 2, 7, 15, 16, 17, 513, 1023, 1024])
def test_a_kernel_gets_its_addresses_in_order(count):
    seen = []
    kernel = _kernel(lambda *addresses: seen.append(addresses), count)
    inputs = [torch.ones(3) for _ in range(count)]
    tensors = [given_as(i, x) for i, x in enumerate(inputs)]

    drive([KernelCall(_address(kernel), tuple(reversed(tensors)))], [], inputs)(inputs)

    assert seen == [tuple(x.data_ptr() for x in reversed(inputs))]


def test_a_kernel_of_more_arguments_is_refused():
    inputs = [torch.ones(3) for _ in range(1025)]
    tensors = tuple(given_as(i, x) for i, x in enumerate(inputs))

    with pytest.raises(Unreadable, match="1025 arguments"):
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
        (torch.ones(2, dtype=torch.int16), Bound(0, 0, 4, None), "not contiguous"),
        (torch.ones(2, dtype=torch.uint8), Bound(0, 0, 4, None), "not contiguous"),
        (torch.ones(4, dtype=torch.int64)[::2], Bound(0, 0, 4, None), "not contiguous"),
        (torch.ones(2, dtype=torch.int64), Bound(0, 0, 0, None), "empty dimension"),
        (torch.ones(2, dtype=torch.int64), Bound(0, 0, 0, -100), "empty dimension"),
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
    monkeypatch.setattr(torch_private.inductor.cpp, "_address", lambda symbol: 0)
    library.cache_clear()

    with pytest.raises(Unreadable, match="no BLAS of the usual names"):
        drive([call], [], inputs)
    inputs[0].zero_()
    before(inputs)
    assert torch.equal(inputs[0], torch.full((2, 4), 4.0))
