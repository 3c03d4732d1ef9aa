"""partition cuts a flat graph into typed nodes; flatten puts it together again."""

import torch
from hypothesis import given

from ir.drawn import flat_graphs
from ir.reference import run, same
from stepgraph.ir import Kind, flatten, marker_name, partition
from stepgraph.ir import build as b
from stepgraph.ir.region import dissolve


def gan_inputs():
    return {
        "batch:x": torch.ones(2, 3),
        "param:w": torch.randn(3, 3, requires_grad=True),
        "param:v": torch.randn(3, 3, requires_grad=True),
    }


def two_updates(x, w, v):
    with b.part(Kind.FORWARD, 0):
        loss = (torch.tanh(x @ w) @ v).sum()
    with b.part(Kind.BACKWARD, 0):
        (gradient,) = torch.autograd.grad(loss, [w])
    b.step([w], [b.store(w, gradient)], 0)
    with b.part(Kind.FORWARD, 1):
        loss = (torch.tanh(x @ w) @ v).square().sum()
    with b.part(Kind.BACKWARD, 1):
        (gradient,) = torch.autograd.grad(loss, [v])
    b.step([v], [b.store(v, gradient)], 1)
    return loss


@given(flat_graphs())
def test_partition_computes_what_the_flat_graph_computes(drawn):
    flat, inputs = drawn

    step = partition(flat)

    assert same(run(step.graph_module, flat, inputs), run(flat, flat, inputs))


@given(flat_graphs())
def test_flatten_gives_back_the_graph_that_was_cut(drawn):
    flat, _ = drawn

    again = dissolve(partition(flat).graph_module)

    assert str(again.graph) == str(flat.graph)
    for new, old in zip(again.graph.nodes, flat.graph.nodes, strict=True):
        assert new.meta.get("stepgraph.slot") == old.meta.get("stepgraph.slot")


@given(flat_graphs())
def test_every_region_is_a_run_of_one_kind_and_computes_something(drawn):
    flat, _ = drawn
    step = partition(flat)

    for node in step.nodes:
        if (region := step.region(node)) is not None:
            computing = filter(_computes, region.graph.nodes)
            kinds = {n.meta.get("stepgraph.kind", Kind.FORWARD) for n in computing}
            assert kinds == {step.kind(node)}


def _computes(node):
    if node.op != "call_function" or not hasattr(node.target, "_schema"):
        return False
    returns = node.target._schema.returns
    return not returns or any(not r.alias_info or r.alias_info.is_write for r in returns)


def test_a_step_has_typed_nodes_in_program_order():
    step = partition(b.flat_graph(two_updates, gan_inputs()))

    kinds = [step.kind(node).value for node in step.nodes if step.kind(node)]

    once = ["forward", "backward", "accumulate", "accumulate", "step"]
    assert kinds == once + once
    assert step.count()[Kind.STEP] == 2


def test_values_that_cross_a_border_are_arguments_and_outputs():
    step = partition(b.flat_graph(two_updates, gan_inputs()))
    names = {node.name: node for node in step.nodes}

    assert [n.name for n in names["forward_0"].args] == ["arg0_1", "arg1_1", "arg2_1"]
    assert all(user.op == "call_function" for user in names["forward_0"].users)


def test_views_between_two_effects_make_no_region():
    def views(x, w, v):
        b.step([w], [], 0)
        top = w.detach().t()
        b.log(top)

    step = partition(b.flat_graph(views, gan_inputs()))

    assert [step.kind(n).value for n in step.nodes if step.kind(n)] == ["step", "log"]


def test_a_constant_of_the_flat_graph_survives_both_ways():
    def constant(x, w, v):
        with b.part(Kind.FORWARD):
            return x * torch.tensor([1.0, 2.0, 3.0])

    inputs = gan_inputs()
    flat = b.flat_graph(constant, inputs)
    step = partition(flat)

    assert any(node.op == "get_attr" for node in step.nodes)
    assert same(run(step.graph_module, flat, inputs), run(flat, flat, inputs))
    assert same(run(flatten(step), flat, inputs), run(flat, flat, inputs))


def test_sizes_cross_borders_as_numbers():
    def sized(x, w, v):
        with b.part(Kind.FORWARD):
            y = x * 2
        with b.part(Kind.BACKWARD):
            return y.new_zeros(x.shape[0]) + y.sum()

    inputs = gan_inputs()
    flat = b.flat_graph(sized, inputs)

    assert same(run(partition(flat).graph_module, flat, inputs), run(flat, flat, inputs))


def test_partition_leaves_the_flat_graph_alone():
    flat = b.flat_graph(two_updates, gan_inputs())
    before = str(flat.graph), [dict(node.meta) for node in flat.graph.nodes]

    partition(flat)

    assert before == (str(flat.graph), [dict(node.meta) for node in flat.graph.nodes])


def test_markers_keep_their_labels():
    flat = b.flat_graph(two_updates, gan_inputs(), labels={0: "SGD(first)", 1: "SGD(second)"})

    steps = [n for n in partition(flat).nodes if marker_name(n) == "step"]

    assert [n.meta["stepgraph.label"] for n in steps] == ["SGD(first)", "SGD(second)"]
