"""OrderForMemory: what it moves, what keeps its place, and that nothing else changes."""

import torch
from hypothesis import given
from torch import nn
from torch.nn import functional

from ir.drawn import flat_graphs
from ir.reference import run, same
from stepgraph.analysis import live_bytes, memory_of, peak
from stepgraph.ir import Kind, flatten, marker_name, partition
from stepgraph.ir import build as b
from stepgraph.ir.build import flat_graph, part, step, store
from stepgraph.passes import OrderForMemory, Pipeline, memory_order
from support.harness import Program, assert_captured, draw, draw_labels, same_as_eager

ATEN = torch.ops.aten
ALWAYS = Pipeline((OrderForMemory(least_bytes=1, least_share=0.0),))


def two_losses(x, y, w):
    """Both forwards, then both backwards."""
    with part(Kind.FORWARD):
        loss = torch.tanh(x @ w).sum()
        other = torch.tanh(y @ w).sum()
    with part(Kind.BACKWARD):
        (first,) = torch.autograd.grad(loss, [w])
    with part(Kind.BACKWARD, 1):
        (second,) = torch.autograd.grad(other, [w])
    step([w], [store(w, first + second)])


def graph_of(function=two_losses, rows=50):
    inputs = {
        "batch:x": torch.ones(rows, 3),
        "batch:y": torch.ones(rows, 3),
        "param:w": torch.ones(3, 3, requires_grad=True),
    }
    return partition(b.transparent(flat_graph(function, inputs)))


def operators(graph, *names):
    found = [
        node.target.__name__.partition(".")[0]
        for node in flatten(graph).graph.nodes
        if node.op == "call_function" and hasattr(node.target, "__name__")
    ]
    return [name for name in found if name in names]


def test_the_picture():
    graph = graph_of()
    assert operators(graph, "tanh", "tanh_backward") == [
        *("tanh", "tanh", "tanh_backward", "tanh_backward")
    ]

    graph, (record,) = ALWAYS(graph)

    assert operators(graph, "tanh", "tanh_backward") == [
        *("tanh", "tanh_backward", "tanh", "tanh_backward")
    ]
    assert record.peak_bytes_after < record.peak_bytes_before
    assert record.did == (
        f"peak {record.peak_bytes_before:,} -> {record.peak_bytes_after:,} bytes in another order",
    )


def test_a_gain_that_is_too_small_leaves_the_order_alone():
    _, (record,) = Pipeline((OrderForMemory(least_bytes=10_000),))(graph_of())

    assert not record.acted


def one_chain(x, y, w):
    """A forward whose activations the backward needs, all of them at its start."""
    with part(Kind.FORWARD):
        loss = torch.tanh(torch.tanh(x @ w) @ w).sum()
    with part(Kind.BACKWARD):
        (first,) = torch.autograd.grad(loss, [w])
    step([w], [store(w, first)])


def test_no_other_order_is_tried_where_every_order_has_the_peak(monkeypatch):
    tried = []

    def order(step, memory):
        tried.append(step)
        return memory.nodes

    monkeypatch.setattr(memory_order, "_ordered", order)
    chain, two = graph_of(one_chain), graph_of()

    OrderForMemory(least_bytes=500)(chain)
    OrderForMemory(least_bytes=500)(two)

    assert tried == [two]


def test_what_is_computed_before_and_needed_after_a_node_is_inevitable():
    graph = graph_of(one_chain)
    first, second = (n for n in graph.flat().graph.nodes if n.target is ATEN.tanh.default)

    # the result of each, which the backward needs, and the product the second is computed from
    assert memory_of(graph).inevitable_bytes(first) == 2 * 50 * 3 * 4
    assert memory_of(graph).inevitable_bytes(second) == 3 * 50 * 3 * 4


@given(flat_graphs())
def test_no_order_has_less_than_what_is_inevitable(drawn):
    step = partition(drawn[0])
    memory = memory_of(step)
    bounds = {n.name: memory.inevitable_bytes(n) for n in memory.nodes if n.op == "call_function"}

    ordered, _ = ALWAYS(step)

    for node, n_bytes in live_bytes(ordered.flat().graph).items():
        assert bounds.get(node.name, 0) <= n_bytes


def draws(x, y, w):
    """The same with dropout, whose numbers come in the order of the program."""
    with part(Kind.FORWARD):
        loss = functional.dropout(torch.tanh(x @ w)).sum()
        other = functional.dropout(torch.tanh(y @ w)).sum()
    with part(Kind.BACKWARD):
        (first,) = torch.autograd.grad(loss, [w])
        (second,) = torch.autograd.grad(other, [w])
    step([w], [store(w, first + second)])


def test_random_draws_keep_their_order():
    graph, _ = ALWAYS(graph_of(draws))
    inputs = {
        "batch:x": torch.rand(50, 3),
        "batch:y": torch.rand(50, 3),
        "param:w": torch.ones(3, 3),
    }
    flat = b.transparent(
        flat_graph(draws, {k: v.requires_grad_(k == "param:w") for k, v in inputs.items()})
    )

    assert same(run(flatten(graph), flat, inputs), run(flat, flat, inputs))


def checks(x, y, w):
    """A value is checked before another, of whose memory it could do without, is logged."""
    with part(Kind.FORWARD):
        first = torch.tanh(x @ w)
        second = torch.tanh(y @ w)
        b.OPS.check.default(second > 0)
        loss = first.sum()
    b.log(loss)
    step([w], [store(w, x.t() @ second.detach())])


def test_effects_and_what_may_raise_keep_their_order():
    graph, _ = ALWAYS(graph_of(checks))

    names = [marker_name(node) for node in flatten(graph).graph.nodes]
    assert [name for name in names if name in ("check", "log", "step")] == ["check", "log", "step"]


@given(flat_graphs())
def test_drawn_steps_do_the_same(drawn):
    flat, inputs = drawn

    graph, (record,) = ALWAYS(partition(flat))

    assert same(run(flatten(graph), flat, inputs), run(flat, flat, inputs))
    assert record.peak_bytes_after <= record.peak_bytes_before


@given(flat_graphs(max_statements=8))
def test_a_second_run_finds_nothing_better(drawn):
    flat, _ = drawn
    graph, _ = ALWAYS(partition(flat))

    _, (record,) = ALWAYS(graph)

    assert record.peak_bytes_after <= record.peak_bytes_before


def test_a_batch_cut_into_parts_by_hand_needs_the_memory_of_one():
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            pieces = zip(x.chunk(4), y.chunk(4), strict=True)
            loss = sum(functional.cross_entropy(net(a), b) for a, b in pieces) / 4
            loss.backward()
            optimizer.step()
            return loss

        def batch(index):
            return draw(400, 4, seed=index), draw_labels(400, below=3, seed=index)

        return Program(step, batch, watch=[net, optimizer])

    result = same_as_eager(make, passes=lambda default: default.then(*ALWAYS))

    assert_captured(result)
    before, after = (
        peak(g[-1].flat().graph).bytes for g in (result.captured_graphs, result.graphs)
    )
    assert after < 0.5 * before
