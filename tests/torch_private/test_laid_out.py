"""Layouts chosen in a graph for Inductor; what it computes and its results' strides stay."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from stepgraph.torch_private import FakeInputs
from stepgraph.torch_private.inductor.layouts import lay_out

aten = torch.ops.aten
CONVOLVE, CONVOLVE_BACK = aten.convolution.default, aten.convolution_backward.default

Strides = tuple[int, ...]
Function = Callable[..., tuple[Tensor, ...]]

IMAGES, WEIGHTS = (2, 4, 6, 6), (4, 4, 3, 3)


def convolve_twice(x, w, v):
    """Two convolutions with a rectifier between, and a backward from a sum of squares."""
    hidden = F.conv2d(x, w, padding=1).relu()
    result = F.conv2d(hidden, v, padding=1)
    rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    back, dv, _ = aten.convolution_backward(2 * result, hidden, v, *rest, [True, True, False])
    back = back * (hidden > 0)
    _, dw, _ = aten.convolution_backward(back, x, w, *rest, [False, True, False])
    return result, hidden, dw, dv


def traced(function: Function, *inputs: Tensor) -> tuple[GraphModule, FakeInputs]:
    fake = FakeInputs(inputs)
    with fake.mode, torch.no_grad():
        graph_module = make_fx(function)(*fake.values)
    return graph_module, fake


def laid_out(
    function: Function, *inputs: Tensor, strides: list[Strides | None], channels_last: bool = True
) -> GraphModule:
    """Return the graph of a function after the choice, seen to compute and return the same."""
    graph_module, fake = traced(function, *inputs)
    wanted = function(*inputs)

    lay_out(graph_module, fake.mode, fake.values, strides, channels_last=channels_last)

    results = graph_module(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))
    for result, given, own in zip(results, strides, wanted, strict=True):
        assert result.stride() == (given or own.stride())
    return graph_module


def readers(graph_module: GraphModule, target: object) -> list[list[Strides]]:
    """Return the strides of the tensors that each call of an operator reads."""
    nodes = graph_module.graph.find_nodes(op="call_function", target=target)
    return [[read.meta["val"].stride() for read in node.all_input_nodes] for node in nodes]


@pytest.fixture
def tensors() -> list[Tensor]:
    torch.manual_seed(0)
    # whole numbers: sums are exact in any order
    return [torch.randint(-3, 4, size).float() for size in (IMAGES, WEIGHTS, WEIGHTS)]


def test_forward_and_backward_of_a_convolution_read_one_tensor(tensors):
    graph_module = laid_out(convolve_twice, *tensors, strides=[None] * 4)

    find = graph_module.graph.find_nodes
    forward = find(op="call_function", target=CONVOLVE)
    backward = find(op="call_function", target=CONVOLVE_BACK)
    for before, after in zip(forward, reversed(backward), strict=True):
        assert before.args[:2] == after.args[1:3]
        assert all(
            read.meta["val"].is_contiguous(memory_format=torch.channels_last)
            for read in before.all_input_nodes
        )


def test_without_channels_last_a_graph_stays_as_traced(tensors):
    untouched, _ = traced(convolve_twice, *tensors)

    graph_module = laid_out(convolve_twice, *tensors, strides=[None] * 4, channels_last=False)

    assert [n.target for n in graph_module.graph.nodes] == [n.target for n in untouched.graph.nodes]


def test_a_graph_that_reads_memory_by_strides_stays_as_traced(tensors):
    def restrided(x, w, v):
        *rest, dv = convolve_twice(x, w, v)
        return *rest, dv, (rest[1] + 1).as_strided((3, 5), (5, 1), 1)

    graph_module = laid_out(restrided, *tensors, strides=[None] * 5)

    assert all(
        strides[0] == (144, 36, 6, 1)
        for target in (CONVOLVE, CONVOLVE_BACK)
        for strides in readers(graph_module, target)
    )


def test_views_of_what_has_channels_last_now_still_work(tensors):
    def flattened(x, w, v):
        *rest, dv = convolve_twice(x, w, v)
        return *rest, dv, (rest[1] + 1).view(2, -1) @ x.view(2, -1).t()

    laid_out(flattened, *tensors, strides=[None] * 5)


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((2, 3), (1, 2)),
        ((4, 3, 2, 5), (30, 1, 15, 3)),
        ((4, 3, 2, 5), (1, 4, 12, 24)),
        ((2, 1, 3), (3, 3, 1)),
        ((2, 1, 3), (1, 7, 2)),
    ],
)
def test_a_result_gets_the_dense_strides_that_are_asked_for(size, strides):
    value = torch.randn(size)
    graph_module, fake = traced(lambda x: (x + 1,), value)

    lay_out(graph_module, fake.mode, fake.values, [strides], channels_last=False)

    (result,) = graph_module(value)
    assert torch.equal(result, value + 1)
    significant = [(a, b) for n, a, b in zip(size, result.stride(), strides, strict=True) if n > 1]
    assert all(a == b for a, b in significant)


@pytest.mark.parametrize("strides", [(0, 1), (4, 1), (3, 2)])
def test_strides_with_gaps_are_left_alone(strides):
    value = torch.randn(2, 3)
    graph_module, fake = traced(lambda x: (x + 1,), value)

    lay_out(graph_module, fake.mode, fake.values, [strides], channels_last=False)

    (result,) = graph_module(value)
    assert result.stride() == (3, 1)
