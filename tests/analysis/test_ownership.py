"""Which values may become a gradient without a copy, and that autograd keeps the same ones."""

import pytest
import torch
from torch import nn

from stepgraph.analysis import keeps_value, stealable
from stepgraph.ir import Kind, all_storages
from stepgraph.ir.build import flat_graph, nodes_of, part, step, store


def graph_of(function):
    inputs = {
        "batch:x": torch.ones(5, 3),
        "param:w": torch.ones(3, 3, requires_grad=True),
        "param:v": torch.ones(3, 3, requires_grad=True),
        "grad:u": torch.ones(3, 3),
    }

    def marked(*values):
        with part(Kind.BACKWARD):
            return function(*values)

    return flat_graph(marked, inputs)


def stolen(function):
    """Whether each gradient that `function` stores may be its value."""
    flat = graph_of(function)
    found = stealable(list(flat.graph.nodes), all_storages(flat.graph))
    return [node in found for node in nodes_of(flat, "first_grad")]


def product(x):
    return x.t() @ x


def test_a_value_of_its_own_becomes_the_gradient():
    assert stolen(lambda x, w, v, u: store(w, product(x))) == [True]


def test_a_gradient_that_is_only_used_as_the_gradient_is_still_the_value():
    def function(x, w, v, u):
        step([w], [store(w, product(x))])

    assert stolen(function) == [True]


def reads_it_afterwards(x, w, v, u):
    value = product(x)
    store(w, value)
    return value.sum()


def returns_it(x, w, v, u):
    value = product(x)
    store(w, value)
    return value


def reads_a_view_of_it_afterwards(x, w, v, u):
    value = product(x)
    row = value[0]
    store(w, value)
    return row.sum()


def stores_it_twice(x, w, v, u):
    value = product(x)
    store(w, value)
    store(v, value)


def is_an_input(x, w, v, u):
    store(w, u)


def is_a_part_of_more(x, w, v, u):
    store(w, torch.tanh(x)[:3])


def has_other_strides(x, w, v, u):
    store(w, product(x).t())


def is_expanded(x, w, v, u):
    store(w, x.sum().expand(3, 3))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (reads_it_afterwards, [False]),
        (returns_it, [False]),
        (reads_a_view_of_it_afterwards, [False]),
        (stores_it_twice, [False, True]),
        (is_an_input, [False]),
        (is_a_part_of_more, [False]),
        (has_other_strides, [False]),
        (is_expanded, [False]),
    ],
)
def test_a_value_that_something_else_holds_is_copied(function, expected):
    assert stolen(function) == expected


def autograd_keeps(param, value):
    """Whether autograd makes `value` itself the gradient of `param`."""
    made = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.sum()

        @staticmethod
        def backward(ctx, grad):
            gradient = value()
            made.append(gradient.untyped_storage().data_ptr())
            return gradient

    Identity.apply(param).backward()
    return param.grad.untyped_storage().data_ptr() == made[0]


MATRIX, COLUMN = torch.randn(4, 3), torch.randn(4, 1)


def test_a_parameter_with_gaps_gets_a_copy():
    """Autograd would keep a contiguous value: a copy of it has the same bits and strides."""
    assert not keeps_value(nn.Parameter(torch.randn(4, 6)[:, ::2]), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("param", "value"),
    [
        (MATRIX, lambda: torch.randn(4, 3)),
        (MATRIX, lambda: torch.randn(3, 4).t()),
        (MATRIX, lambda: torch.randn(3).expand(4, 3)),
        (MATRIX.t(), lambda: torch.randn(4, 3).t()),
        (COLUMN, lambda: torch.randn(1, 4).t()),
        (COLUMN, lambda: torch.randn(4, 1)),
        (torch.randn(()), lambda: torch.randn(())),
        (
            torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            lambda: torch.randn(2, 3, 4, 4),
        ),
    ],
)
def test_strides_decide_as_they_do_in_autograd(param, value):
    parameter = nn.Parameter(param)

    assert keeps_value(parameter, value()) is autograd_keeps(parameter, value)
