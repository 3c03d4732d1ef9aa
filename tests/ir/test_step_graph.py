"""A step graph is one flat graph until its typed nodes are asked for; then those are the truth."""

import pytest
import torch

from stepgraph.errors import VerifyError
from stepgraph.ir import Kind, StepGraph, flatten, partition
from stepgraph.ir import build as b


def train(x, w):
    b.clear([w])
    with b.part(Kind.FORWARD):
        loss = (x @ w).relu().sum()
    with b.part(Kind.BACKWARD):
        (gradient,) = torch.autograd.grad(loss, [w])
    b.step([w], [b.store(w, gradient)])
    return loss


@pytest.fixture
def step():
    inputs = {"batch:x": torch.ones(2, 3), "param:w": torch.ones(3, 3, requires_grad=True)}
    return partition(b.flat_graph(train, inputs))


def names(graph):
    return [node.name for node in graph.nodes]


def test_a_step_that_is_only_read_is_built_once(step):
    flat = step.flat()

    assert step.nodes
    assert step.flat() is flat
    assert step.accesses() is step.accesses()


def test_an_edit_of_a_typed_node_shows_in_the_flat_graph(step):
    before, access = names(step.flat().graph), step.accesses()
    cleared = next(node for node in step.nodes if node.name == "zero_grad")

    step.graph_module.graph.erase_node(cleared)

    assert names(step.flat().graph) == [name for name in before if name != "zero_grad"]
    assert step.accesses() is not access
    assert set(step.accesses()) == set(step.storages()) == set(step.flat().graph.nodes)


def test_an_edit_inside_of_a_region_shows_in_the_flat_graph(step):
    region = step.region(next(node for node in step.nodes if step.kind(node) is Kind.FORWARD))
    relu = next(node for node in region.graph.nodes if node.name == "relu")

    relu.replace_all_uses_with(relu.args[0])
    region.graph.erase_node(relu)

    assert "relu" not in names(step.flat().graph)


def test_an_edit_of_a_flat_copy_does_not_show(step):
    before = str(step)
    flat = flatten(step)
    flat.graph.erase_node(next(node for node in flat.graph.nodes if node.name == "zero_grad"))

    assert str(step) == before
    assert str(partition(flat)) != before


def test_every_operator_of_a_flat_graph_knows_its_typed_node(step):
    named = {node.name: node.meta.get("stepgraph.node") for node in step.flat().graph.nodes}
    typed = {node.name for node in step.nodes if step.kind(node)}

    assert {name for name in named.values() if name} == typed
    assert named["relu"] == "forward_0"
    assert named["zero_grad"] == "zero_grad"
    assert named["arg0_1"] is named["output"] is None


def test_names_of_typed_nodes_follow_an_edit(step):
    flat = step.take_flat()
    cleared = next(node for node in flat.graph.nodes if node.name == "zero_grad")
    relu = next(node for node in flat.graph.nodes if node.name == "relu")
    relu.append(cleared)

    again = StepGraph(flat)

    named = [
        n.meta["stepgraph.node"] for n in again.flat().graph.nodes if "stepgraph.node" in n.meta
    ]
    assert list(dict.fromkeys(named))[:3] == ["forward_0", "zero_grad", "forward_1"]


def test_a_step_whose_flat_graph_was_taken_is_not_used_any_more(step):
    step.take_flat()

    for use in (step.flat, step.version, step.accesses, lambda: step.nodes):
        with pytest.raises(AssertionError, match="taken"):
            use()


def test_a_flat_graph_is_checked_where_there_are_no_typed_nodes(step):
    flat = step.take_flat()
    product, relu = (next(n for n in flat.graph.nodes if n.name == name) for name in ("mm", "relu"))
    relu.append(product)

    with pytest.raises(VerifyError, match="malformed"):
        StepGraph(flat).verify()
