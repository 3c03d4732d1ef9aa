"""Bytes that nodes read and write, and the work of a whole step, counted by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stepgraph.analysis import bytes_of, flops, launches, size_of, sizes_of, work
from stepgraph.ir import Kind, all_storages, partition
from stepgraph.ir.build import add, clear, flat_graph, log, nodes_of, part, step, store

X, W = 5 * 3 * 4, 3 * 3 * 4


def graph_of(function, **more):
    inputs = {
        "batch:x": torch.ones(5, 3),
        "param:w": torch.ones(3, 3, requires_grad=True),
        "grad:w": torch.ones(3, 3),
        **more,
    }

    def marked(x, w, grad, *rest):
        with part(Kind.FORWARD):
            return function(x, w, grad, *rest)

    return flat_graph(marked, inputs)


def traffic(flat, name):
    (node,) = nodes_of(flat, name)
    return bytes_of(node, all_storages(flat.graph))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(5, 3), X),
        (torch.ones(5, 3, dtype=torch.bfloat16), X // 2),
        (torch.ones(1, 3).expand(5, 3), 3 * 4),
        (torch.ones(()), 4),
        (torch.ones(0, 3), 0),
        (torch.ones(5, 6)[:, ::2], X),
        ([torch.ones(2), (torch.ones(3), None)], 20),
        (3, 0),
    ],
)
def test_the_size_of_a_value_is_that_of_its_elements(value, expected):
    assert size_of(value) == expected


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (lambda x, w, g: torch.tanh(x), "tanh", 2 * X),
        (lambda x, w, g: x @ w, "mm", X + W + X),
        (lambda x, w, g: x.sum(), "sum", X + 4),
        (lambda x, w, g: x.t(), "t", 0),
        (lambda x, w, g: x.add_(1), "add_", 2 * X),
        (lambda x, w, g: x[0].add_(1), "add_", 2 * 3 * 4),
        (lambda x, w, g: torch.zeros(5, 3), "zeros", X),
        (lambda x, w, g: x + x[:1].expand(5, 3), "add", X + 12 + X),
        (lambda x, w, g: torch.max(x, 0), "max", X + 12 + 24),
        (lambda x, w, g: torch._foreach_add_([w.detach(), g], 1), "_foreach_add_", 4 * W),
    ],
)
def test_an_operator_moves_what_it_is_given_and_what_it_makes(function, name, expected):
    assert traffic(graph_of(function), name) == expected


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (lambda x, w, g: step([w], [g]), "step", 3 * W),
        (lambda x, w, g: add(g, x.t() @ x), "add_grad_", 3 * W),
        (lambda x, w, g: store(w, x.t() @ x), "first_grad", 2 * W),
        (lambda x, w, g: store(w, x.t() @ x), "set_grad", 0),
        (lambda x, w, g: clear([w]), "zero_grad", 0),
        (lambda x, w, g: log(x.sum()), "log", 0),
    ],
)
def test_an_effect_moves_what_it_says(function, name, expected):
    assert traffic(graph_of(function), name) == expected


def test_known_sizes_are_taken_as_they_are():
    flat = graph_of(lambda x, w, g: torch.tanh(x))
    (node,) = nodes_of(flat, "tanh")

    assert sizes_of([node], {node: 7}) == 7
    assert bytes_of(node, all_storages(flat.graph), {node: 7}) == X + 7


def test_products_count_two_operations_for_each_multiplication():
    flat = graph_of(lambda x, w, g: torch.tanh(x @ w) @ w)

    assert flops(flat) == 2 * (2 * 5 * 3 * 3)


def test_convolutions_and_gradients_count_as_in_torchs_counter():
    def function(x, w, g, image, kernel):
        hidden = torch.tanh(x @ w)
        loss = nn.functional.conv2d(image, kernel).sum() + torch.bmm(hidden[None], w[None]).sum()
        return torch.autograd.grad(loss, [w, kernel])

    more = {
        "batch:image": torch.ones(2, 3, 8, 8),
        "param:kernel": torch.ones(4, 3, 3, 3, requires_grad=True),
    }
    flat = graph_of(function, **more)
    inputs = [torch.ones(5, 3), torch.ones(3, 3, requires_grad=True), None, *more.values()]
    with FlopCounterMode(display=False) as counter:
        function(*inputs)

    assert flops(flat) == counter.get_total_flops() > 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)


def test_the_work_of_a_step_is_the_sum_over_what_it_launches():
    def function(x, w, g):
        hidden = torch.tanh(x @ w)
        step([w], [g])
        clear([w])
        return hidden.t().sum()

    found = work(partition(graph_of(function)))

    assert found.launches == 4  # the product, tanh, the sum and the update
    assert found.bytes == (X + W + X) + 2 * X + (X + 4) + 3 * W
    assert found.flops == 2 * 5 * 3 * 3
    assert found.peak_bytes == 2 * X


def test_views_clears_and_logs_launch_nothing():
    def function(x, w, g):
        clear([w])
        log(x.sum())
        return x.t()[0]

    flat = graph_of(function)

    launched = [n.target.__name__ for n in flat.graph.nodes if launches(n)]
    assert launched == ["sum.default"]
