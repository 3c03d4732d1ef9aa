"""Whatever order the dependency graph allows computes the same, and it forbids no more by luck."""

import random
from itertools import combinations

import networkx as nx
import torch
from hypothesis import given
from hypothesis import strategies as st

from ir.drawn import flat_graphs
from ir.reference import run, same
from stepgraph.ir import Kind, marker_name, partition
from stepgraph.ir import build as b


def random_order(step, seed):
    """Return a topological order of the dependencies, drawn."""
    dice = random.Random(seed)
    return list(nx.lexicographical_topological_sort(step.dependencies(), lambda _: dice.random()))


def edges(step):
    return {(u.name, v.name): data["kind"] for u, v, data in step.dependencies().edges(data=True)}


def inputs():
    return {
        "batch:x": torch.ones(2, 2),
        "param:w": torch.randn(2, 2),
        "param:v": torch.randn(2, 2),
    }


def step_of(function, *, opaque=False):
    flat = b.flat_graph(function, inputs())
    return partition(flat if opaque else b.transparent(flat))


@given(flat_graphs(), st.integers(0, 2**16))
def test_every_order_the_dependencies_allow_computes_the_same(drawn, seed):
    flat, values = drawn
    step = partition(flat)
    expected = run(step.graph_module, flat, values)

    for i in range(3):
        step.reordered(random_order(step, seed + i))

        assert same(run(step.graph_module, flat, values), expected)


@given(flat_graphs(opaque=True))
def test_every_node_is_on_one_side_of_an_opaque_step(drawn):
    flat, _ = drawn
    step = partition(flat)
    closed = nx.transitive_closure_dag(step.dependencies().copy())
    typed = [node for node in step.nodes if step.kind(node)]

    for earlier, later in combinations(typed, 2):
        if "step" in (marker_name(earlier), marker_name(later)):
            assert closed.has_edge(earlier, later)


@given(flat_graphs())
def test_present_order_is_one_the_dependencies_allow(drawn):
    flat, _ = drawn
    step = partition(flat)
    place = {node: i for i, node in enumerate(step.nodes)}

    assert all(place[u] < place[v] for u, v in step.dependencies().edges)
    assert nx.descendants(step.dependencies(), step.nodes[0]) >= {step.nodes[-1]}


def test_an_update_waits_for_the_last_reader_of_its_weight():
    def reads_then_writes(x, w, v):
        with b.part(Kind.FORWARD):
            y = x @ w
        b.step([w], [])
        return y

    assert edges(step_of(reads_then_writes))["forward_0", "step"] == "anti"


def test_a_forward_after_an_update_sees_the_new_weight():
    def writes_then_reads(x, w, v):
        b.step([w], [])
        with b.part(Kind.FORWARD):
            return x @ w

    assert edges(step_of(writes_then_reads))["step", "forward_0"] == "data"


def test_two_updates_of_one_weight_keep_their_order():
    def twice(x, w, v):
        b.step([w], [], 0)
        b.step([w], [], 1)

    assert ("step", "step_1") in edges(step_of(twice))


def test_updates_of_different_weights_are_free():
    def apart(x, w, v):
        b.step([w], [], 0)
        b.step([v], [], 1)

    assert ("step", "step_1") not in edges(step_of(apart))
    assert ("step", "step_1") in edges(step_of(apart, opaque=True))


def test_a_read_after_a_step_through_a_view_of_the_weight_is_a_data_edge():
    def through_a_view(x, w, v):
        with b.part(Kind.FORWARD):
            top = w.t()
            y = x @ top
        b.step([w], [])
        with b.part(Kind.BACKWARD):
            return y @ top

    assert edges(step_of(through_a_view))["step", "backward_0"] == "data"


def test_an_addition_to_a_stored_gradient_stays_before_the_update_and_its_clearing():
    def accumulates(x, w, v):
        grad = b.store(w, x)
        b.add(grad, v)
        b.step([w], [grad])
        b.add(grad, x)
        b.clear([w])

    found = edges(step_of(accumulates))

    assert found["add_grad_", "step"] == "data"
    assert found["step", "add_grad__1"] == "anti"
    assert found["add_grad__1", "zero_grad"] == "output"


def test_slots_that_share_memory_share_their_names():
    def writes_one_reads_the_other(flat_weights, w):
        b.step([w], [])
        with b.part(Kind.FORWARD):
            return flat_weights * 2

    memory = torch.ones(4)
    values = {"buffer:flat": memory, "param:w": memory.view(2, 2)}
    step = partition(b.transparent(b.flat_graph(writes_one_reads_the_other, values)))

    assert edges(step)["step", "forward_0"] == "data"


def test_a_learning_rate_read_on_either_side_of_its_schedule_differs():
    def scheduled(x, w, v):
        before = b.lr()
        b.OPS.lr_step.default(None, 0)
        return [before, b.lr()]

    found = edges(step_of(scheduled))

    assert found["hyper", "lr_step"] == "anti"
    assert found["lr_step", "hyper_1"] == "data"


def test_random_draws_keep_their_order():
    def draws(x, w, v):
        with b.part(Kind.FORWARD):
            first = torch.nn.functional.dropout(x)
        with b.part(Kind.BACKWARD):
            return [first, torch.nn.functional.dropout(w)]

    assert ("forward_0", "backward_0") in edges(step_of(draws))


def test_an_edit_of_the_graph_drops_the_view():
    def apart(x, w, v):
        b.step([w], [], 0)
        b.step([v], [], 1)

    step = step_of(apart)
    before = step.dependencies()
    assert step.dependencies() is before

    first, second = (node for node in step.nodes if marker_name(node) == "step")
    second.meta["stepgraph.writes"] += ("param:w",)

    assert step.dependencies() is not before
    assert step.dependencies().has_edge(first, second)


def test_the_number_of_edges_grows_with_the_number_of_nodes():
    def many(n):
        def updates(x, w, v):
            for i in range(n):
                b.step([w if i % 2 else v], [], i)

        return step_of(updates, opaque=True).dependencies().number_of_edges()

    assert many(40) < 2.2 * many(20)
