"""Live bytes: recomputed by hand, one node after the other."""

import pytest
import torch

from stepgraph.analysis import Peak, live_bytes, peak
from stepgraph.ir import Kind
from stepgraph.ir.build import clear, flat_graph, nodes_of, part, step, store

X = 5 * 3 * 4  # bytes of a float32 tensor of shape [5, 3]
W = 3 * 3 * 4
ONE = 4


def graph_of(function, **inputs):
    named = {
        "batch:x": torch.ones(5, 3),
        "param:w": torch.ones(3, 3, requires_grad=True),
        **inputs,
    }
    return flat_graph(function, named)


def alive(flat):
    """The bytes at every operator, by its name and in order."""
    found = live_bytes(flat.graph)
    return [(n.target.__name__.partition(".")[0], found[n]) for n in flat.graph.nodes if n in found]


def forward(function):
    """Mark a whole function as one forward."""

    def marked(*inputs):
        with part(Kind.FORWARD):
            return function(*inputs)

    return marked


def test_a_value_lives_from_its_node_to_its_last_use():
    flat = graph_of(forward(lambda x, w: torch.exp(torch.sin(torch.tanh(x))).sum()))

    # the input of each operator and its result; not the batch
    assert alive(flat) == [
        ("tanh", X),
        ("sin", 2 * X),
        ("exp", 2 * X),
        ("sum", X + ONE),
        ("detach", ONE),
    ]


def test_a_value_that_is_used_twice_lives_until_the_second_use():
    def function(x, w):
        kept = torch.tanh(x)
        return (torch.exp(torch.sin(kept)) + kept).sum()

    flat = graph_of(forward(function))

    assert alive(flat)[:4] == [("tanh", X), ("sin", 2 * X), ("exp", 3 * X), ("add", 3 * X)]


def test_a_view_keeps_the_memory_of_what_it_views():
    def function(x, w):
        row = torch.tanh(x)[0]
        other = torch.sin(x)
        return row.sum() + other.sum()

    flat = graph_of(forward(function))

    found = dict(alive(flat))
    assert found["sin"] == 2 * X  # the view is 12 bytes, what it keeps 60
    assert found["select"] == X


def test_an_operator_that_writes_in_place_allocates_nothing():
    def function(x, w):
        hidden = torch.tanh(x)
        hidden.mul_(2)
        return hidden.sum()

    flat = graph_of(forward(function))

    assert alive(flat)[:3] == [("tanh", X), ("mul_", X), ("sum", X + ONE)]


def test_results_stay_to_the_end():
    def function(x, w):
        first = torch.tanh(x)
        return first, torch.sin(torch.cos(x)).sum()

    flat = graph_of(forward(function))

    found = alive(flat)
    assert ("sin", 3 * X) in found
    assert found[-1][1] == X + ONE


def test_the_pieces_of_a_tuple_count_once_each():
    def function(x, w):
        values, places = torch.max(x, 0)
        return values + places

    flat = graph_of(forward(function))

    found = dict(alive(flat))
    # three floats and three int64, made together
    assert found["add"] == 3 * 4 + 3 * 8 + 3 * 4


def gradient_step(x, w):
    with part(Kind.FORWARD):
        loss = torch.tanh(x @ w).sum()
    with part(Kind.BACKWARD):
        (gradient,) = torch.autograd.grad(loss, [w])
    step([w], [store(w, gradient)])


def test_a_gradient_that_is_not_cleared_stays():
    flat = graph_of(gradient_step)

    (update,) = nodes_of(flat, "step")
    assert live_bytes(flat.graph)[update] == W


def test_a_gradient_is_freed_when_it_is_cleared():
    def function(x, w):
        gradient_step(x, w)
        clear([w])
        with part(Kind.FORWARD):
            return torch.tanh(x)

    flat = graph_of(function)

    *_, last = nodes_of(flat, "tanh")
    assert live_bytes(flat.graph)[last] == X


def test_a_gradient_that_replaces_another_frees_it():
    def function(x, w):
        gradient_step(x, w)
        gradient_step(x, w)

    flat = graph_of(function)

    *_, last = nodes_of(flat, "step")
    assert live_bytes(flat.graph)[last] == W


@pytest.mark.parametrize("copied", [False, True])
def test_a_gradient_has_memory_of_its_own_only_where_its_value_is_used_again(copied):
    def function(x, w):
        with part(Kind.FORWARD):
            loss = (x @ w).sum()
        with part(Kind.BACKWARD):
            (gradient,) = torch.autograd.grad(loss, [w])
        grad = store(w, gradient)
        step([w], [grad])
        with part(Kind.FORWARD):
            return gradient.sum() if copied else grad.sum()

    flat = graph_of(function)

    (update,) = nodes_of(flat, "step")
    assert live_bytes(flat.graph)[update] == (2 if copied else 1) * W


def test_the_peak_is_the_largest_of_them_and_its_first_node():
    flat = graph_of(forward(lambda x, w: torch.exp(torch.sin(torch.tanh(x))).sum()))

    (sine,) = nodes_of(flat, "sin")
    assert peak(flat.graph) == Peak(2 * X, sine)
    assert peak(graph_of(lambda x, w: None).graph) is None


def test_expanded_elements_take_memory_once():
    def function(x, w):
        return torch.tanh(x[:1]).expand(5, 3).sum()

    flat = graph_of(forward(function))

    assert dict(alive(flat))["expand"] == 3 * 4
