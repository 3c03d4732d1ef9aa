"""When a compiled result counts as the eager one."""

import pytest
import torch
from torch.fx import Graph, GraphModule

from stepgraph.effects import OPS
from stepgraph.lowering.closeness import (
    difference,
    exact_results,
    is_close,
    rounded_results,
    tolerance,
)


def never() -> list[torch.Tensor]:
    raise AssertionError("exact results were asked for")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_half_of_the_digits_of_each_type_must_agree(dtype):
    value = torch.linspace(1, 2, 64, dtype=torch.float64)
    eps = torch.finfo(dtype).eps

    assert tolerance(dtype) == eps**0.5
    assert is_close((value * (1 + eps)).to(dtype), value.to(dtype))
    assert not is_close((value * (1 + 4 * eps**0.5)).to(dtype), value.to(dtype))


def test_integers_shapes_and_types_must_be_equal():
    value = torch.arange(4)

    assert difference([value], [value.clone()], never) is None
    assert not is_close(value + 1, value)
    assert not is_close(torch.zeros(4), torch.zeros(2, 2))
    assert not is_close(torch.zeros(4), torch.zeros(4, dtype=torch.float64))


def test_infinities_and_nan_must_stand_in_the_same_places():
    value = torch.tensor([1.0, float("inf"), float("nan")])

    assert is_close(value.clone(), value)
    assert not is_close(torch.tensor([1.0, float("-inf"), float("nan")]), value)
    assert not is_close(torch.tensor([1.0, 2.0, float("nan")]), value)
    assert not is_close(torch.tensor([float("nan"), float("inf"), float("nan")]), value)


def test_two_roundings_of_zero_are_as_good_as_each_other():
    exact = torch.zeros(32, dtype=torch.float64)
    eager = torch.randn(32) * 1e-9
    compiled = torch.randn(32) * 1e-9

    assert not is_close(compiled, eager)
    assert difference([compiled], [eager], lambda: [exact]) is None


def test_a_result_much_further_from_the_exact_one_than_eager_is_refused():
    exact = torch.zeros(32, dtype=torch.float64)
    eager = torch.randn(32) * 1e-9

    found = difference([torch.randn(32) * 1e-6], [eager], lambda: [exact])

    assert found is not None
    assert "result 0 of 1" in found


def test_without_an_exact_result_a_difference_stays_one():
    def fails() -> list[torch.Tensor]:
        raise RuntimeError("no float64 here")

    found = difference([torch.ones(2)], [torch.zeros(2)], fails)

    assert found is not None
    assert "no float64 here" in found


def test_exact_results_are_those_of_the_operators_in_float64():
    graph = Graph()
    x, grad = graph.placeholder("x"), graph.placeholder("grad")
    half = graph.call_function(torch.ops.aten._to_copy.default, (x,), {"dtype": torch.bfloat16})
    third = graph.call_function(torch.ops.aten.div.Tensor, (half, 3))
    graph.call_function(OPS.add_grad_.default, (grad, third))
    graph.output((graph.call_function(OPS.first_grad.default, (x, third)),))
    x_value, grad_value = torch.tensor([1.1]), torch.tensor([1.0])

    result, written = exact_results(GraphModule({}, graph), [x_value, grad_value], (1,))

    expected = torch.tensor([1.1]).double() / 3
    assert torch.equal(result, expected)
    assert torch.equal(written, 1 + expected)
    assert grad_value.item() == 1.0


def _through_relu(weight):
    """Return a region `relu(weight @ x) > 0` as a number each, and an input near its kink."""
    graph = Graph()
    x = graph.placeholder("x")
    product = graph.call_function(torch.ops.aten.mul.Tensor, (x, weight))
    centred = graph.call_function(torch.ops.aten.sub.Tensor, (product, 1.0))
    side = graph.call_function(torch.ops.aten.sign.default, (centred,))
    graph.output((side,))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(3)
    return GraphModule({}, graph)


def test_a_result_that_hangs_on_one_rounding_may_fall_on_either_side():
    region = _through_relu(3.0)
    inputs = [torch.tensor([1 / 3, 5.0, -5.0])]  # a third of three is one, but for rounding
    exact = exact_results(region, inputs, ())
    eager = [exact[0].float()]
    other = [eager[0] * torch.tensor([-1.0, 1.0, 1.0])]
    wrong = [eager[0] * torch.tensor([1.0, -1.0, 1.0])]

    def rounded(seed):
        return rounded_results(region, inputs, (), seed)

    assert difference(other, eager, lambda: exact, rounded) is None
    assert difference(wrong, eager, lambda: exact, rounded) is not None
    assert difference(other, eager, lambda: exact) is not None


def test_what_is_rounded_at_random_is_what_an_operator_returns_not_what_it_views_or_writes():
    graph = Graph()
    x = graph.placeholder("x")
    row = graph.call_function(torch.ops.aten.select.int, (x, 0, 0))
    graph.call_function(torch.ops.aten.zero_.default, (row,))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, 1.0)),))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(2, 2) if node.name != "select" else torch.empty(2)
    region, value = GraphModule({}, graph), torch.ones(2, 2)

    result, written = rounded_results(region, [value], (0,), seed=1)

    assert torch.equal(written, torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    assert not torch.equal(result, written)
    assert is_close(result.float(), written.float())
    assert torch.equal(value, torch.ones(2, 2))
