"""Matrix products by BLAS, of every layout that it takes."""

import itertools
import threading

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from stepgraph.lowering.regions.driver import drive as drive_wrapper
from stepgraph.lowering.regions.driver.scratch import assign_offsets
from stepgraph.torch_private import MatrixProduct, Unreadable, Wrapper
from support.inductor_wrappers import (
    SIZES,
    drawn_wrappers,
    drive,
    given_as,
    made,
    matrix,
    product,
    written_by_hand,
)


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
    assert assign_offsets(Wrapper(tuple(calls), tuple(steps[-1:])))[1] <= 2 * 128


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
        run = drive_wrapper(compiled, drawn.inputs, (), compiled)
    except Unreadable as reason:
        event(str(reason))
        return

    for _ in range(2):
        results = run(list(drawn.inputs))
        assert len(results) == len(expected)
        for mine, other in zip(results, expected, strict=True):
            assert mine.stride() == other.stride()
            assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (product(dtypes=(torch.bfloat16,) * 3), "dtype other than"),
        (product(dtypes=(torch.int64,) * 3), "dtype other than"),
        (product(dtypes=(torch.float32, torch.float32, torch.float64)), "dtype other than"),
        (product(bias=torch.ones(4, dtype=torch.float64)), "dtype other than"),
        (product((0, 3, 4)), "empty"),
        (product((2, 0, 4)), "empty"),
        (product((2, 3, 0)), "empty"),
        (product(a=torch.ones(4, 6)[::2, ::2]), "both have gaps"),
        (product(b=torch.ones(1, 4).expand(3, 4)), "both have gaps"),
        (product(a=torch.ones(9).as_strided((2, 3), (2, 1))), "both have gaps"),
        (product(out=torch.ones(4, 2).t()), "into columns"),
        (product(a=torch.ones(2, 2)), "do not match"),
        (product(out=torch.ones(2, 3)), "do not match"),
        (product(bias=torch.ones(3)), "do not match"),
        (product(bias=torch.ones(3, 4)), "do not match"),
        (product(bias=torch.ones(1, 2, 4)), "do not match"),
        (product(a=torch.ones(3)), "tensors that are not matrices"),
        (product(b=torch.ones(1, 3, 4)), "tensors that are not matrices"),
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
