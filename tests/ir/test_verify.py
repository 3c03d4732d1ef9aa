"""verify accepts whatever means the same and names the first thing that does not."""

import operator

import networkx as nx
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ir.drawn import flat_graphs
from ir.reference import run, same
from ir.test_dependencies import inputs, random_order
from stepgraph.errors import VerifyError
from stepgraph.ir import Kind, partition
from stepgraph.ir import build as b


def train(x, w, v):
    with b.part(Kind.FORWARD):
        loss = (torch.nn.functional.dropout(x @ w) @ v).sum()
    with b.part(Kind.BACKWARD):
        gradient = torch.ones_like(loss) * v
    b.clear([w, v])
    b.step([w], [b.store(w, gradient)])
    b.log(loss)
    with b.part(Kind.FORWARD, 1):
        return x @ w


@pytest.fixture
def step():
    return partition(b.flat_graph(train, inputs(), labels={0: "SGD(opt)", 1: "losses"}))


def node(step, name):
    return next(n for n in step.nodes if n.name == name)


@given(flat_graphs(), st.integers(0, 2**16))
def test_accepts_every_order_the_dependencies_allow(drawn, seed):
    flat, _ = drawn
    captured = partition(flat)
    step = captured.copy()

    step.reordered(random_order(step, seed))

    step.verify(against=captured)


@given(flat_graphs(), st.randoms(use_true_random=False))
def test_whatever_it_accepts_computes_the_same(drawn, dice):
    flat, values = drawn
    captured = partition(flat)
    step = captured.copy()
    data = nx.DiGraph((u, n) for n in step.nodes for u in n.all_input_nodes)
    data.add_nodes_from(step.nodes)
    data.add_edges_from((n, step.nodes[-1]) for n in step.nodes[:-1])

    step.reordered(nx.lexicographical_topological_sort(data, lambda _: dice.random()))
    try:
        step.verify(against=captured)
    except VerifyError:
        assume(False)

    assert same(run(step.graph_module, flat, values), run(captured.graph_module, flat, values))


@given(flat_graphs())
def test_accepts_what_partition_makes(drawn):
    step = partition(drawn[0])

    step.verify()
    assert step.nodes  # from here on it has typed nodes, too
    step.verify()
    step.verify(against=step.copy())


def test_refuses_a_read_moved_before_the_update_it_saw(step):
    captured = step.copy()
    node(step, "step").prepend(node(step, "forward_1"))

    with pytest.raises(VerifyError, match=r"mm_2 reads \w+:?\w* as written by"):
        step.verify(against=captured)


def test_refuses_a_lost_effect(step):
    captured = step.copy()
    step.graph_module.graph.erase_node(node(step, "log"))

    step.verify()
    with pytest.raises(VerifyError, match=r"(?s)an effect was lost: stepgraph.log.default.*0 of"):
        step.verify(against=captured)


def test_refuses_a_doubled_effect(step):
    captured = step.copy()
    graph, effect = step.graph_module.graph, node(step, "zero_grad")
    with graph.inserting_after(effect):
        graph.node_copy(effect)

    with pytest.raises(VerifyError, match=r"doubled or added: clear"):
        step.verify(against=captured)


def test_refuses_a_use_before_its_definition(step):
    node(step, "forward_0").prepend(node(step, "backward_0"))

    with pytest.raises(VerifyError, match="malformed"):
        step.verify()


def test_refuses_a_region_that_writes_in_silence():
    def writes(x, w, v):
        with b.part(Kind.FORWARD):
            w.add_(x)

    step = partition(b.flat_graph(writes, inputs()))
    node(step, "forward_0").meta["stepgraph.writes"] = ()

    with pytest.raises(VerifyError, match=r"(?s)undeclared write.*forward_0"):
        step.verify()


def test_refuses_a_region_that_draws_in_silence(step):
    node(step, "forward_0").meta["stepgraph.writes"] = ()

    with pytest.raises(VerifyError, match="draws random numbers without declaring it"):
        step.verify()


def test_refuses_a_computation_without_a_kind(step):
    graph = step.graph_module.graph
    with graph.inserting_before(step.nodes[-1]):
        graph.call_function(operator.getitem, (node(step, "forward_0"), 0))
        step.verify()
        graph.call_function(torch.ops.aten.neg.default, (step.nodes[0],))

    with pytest.raises(VerifyError, match="has no kind"):
        step.verify()


def test_refuses_a_read_of_what_nobody_wrote(step):
    node(step, "backward_0").meta["stepgraph.reads"] += ("value:nowhere",)

    with pytest.raises(VerifyError, match="backward_0 reads value:nowhere before"):
        step.verify()
