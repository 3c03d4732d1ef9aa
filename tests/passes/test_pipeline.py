"""The pipeline verifies after every pass and records what it did; its passes preserve results."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given

from ir.drawn import flat_graphs
from ir.reference import Runner, World, run, same
from stepgraph.errors import VerifyError
from stepgraph.ir import Kind, flatten, partition
from stepgraph.ir.build import clear, flat_graph, part, step, store
from stepgraph.passes import DEFAULT, DropDeadGradients, DropUnusedNorm, Pass, Pipeline


def results(module, flat, inputs):
    """What a run leaves, but for the gradients."""
    world = World(flat, inputs)
    torch.manual_seed(7)
    world.outputs = Runner(module, world).run(*world.tensors.values())
    world.grads = {}
    world.tensors = {k: v for k, v in world.tensors.items() if not k.startswith("grad:")}
    return world.facts()


@given(flat_graphs())
def test_the_default_pipeline_changes_no_result_and_no_gradient(drawn):
    flat, inputs = drawn

    graph, _ = DEFAULT(partition(flat))

    assert same(run(flatten(graph), flat, inputs), run(flat, flat, inputs))


@given(flat_graphs())
def test_dropped_gradients_change_no_other_result(drawn):
    flat, inputs = drawn

    graph, _ = Pipeline((DropDeadGradients(),))(partition(flat))

    assert same(results(flatten(graph), flat, inputs), results(flat, flat, inputs))


@given(flat_graphs())
def test_every_pass_does_nothing_the_second_time(drawn):
    flat, _ = drawn
    pipeline = DEFAULT.then(DropDeadGradients())
    graph, _ = pipeline(partition(flat))
    once = str(flatten(graph).graph)

    again, records = pipeline(graph)

    assert str(flatten(again).graph) == once
    assert not any(record.acted for record in records)


def small(x, w):
    clear([w])
    with part(Kind.FORWARD):
        loss = (x @ w).sum()
    with part(Kind.BACKWARD):
        (gradient,) = torch.autograd.grad(loss, [w])
    with part(Kind.GRAD_NORM):
        gradient.detach().square().sum().sqrt()
    step([w], [store(w, gradient)])
    return loss


def captured(function=small):
    inputs = {"batch:x": torch.ones(2, 3), "param:w": torch.ones(3, 3, requires_grad=True)}
    return partition(flat_graph(function, inputs))


def a_used_norm(x, w):
    clear([w])
    with part(Kind.FORWARD):
        loss = (x @ w).sum()
    with part(Kind.BACKWARD):
        (gradient,) = torch.autograd.grad(loss, [w])
    with part(Kind.GRAD_NORM):
        norm = gradient.detach().square().sum().sqrt()
    step([w], [store(w, gradient)])
    return norm


def test_a_norm_that_is_returned_stays():
    before = str(captured(a_used_norm))

    graph, _ = Pipeline((DropUnusedNorm(),))(captured(a_used_norm))

    assert str(graph) == before
    assert "grad_norm" in before


@dataclass(frozen=True)
class LoseAnUpdate(Pass):
    keeps_effects: ClassVar[bool] = True

    def __call__(self, step):
        flat = flatten(step)
        for node in flat.graph.nodes:
            if node.target is torch.ops.stepgraph.step.default:
                flat.graph.erase_node(node)
        return partition(flat)


@dataclass(frozen=True)
class LoseItOnPurpose(LoseAnUpdate):
    keeps_effects: ClassVar[bool] = False


@dataclass(frozen=True)
class SwapEnds(Pass):
    """Puts the update in front of everything."""

    def __call__(self, step):
        update = next(n for n in step.nodes if step.kind(n) is Kind.STEP)
        return step.reordered([update, *(n for n in step.nodes if n is not update)])


@pytest.mark.parametrize("broken", [LoseAnUpdate(), SwapEnds()])
def test_a_pass_that_breaks_a_step_is_named(broken):
    with pytest.raises(VerifyError, match=type(broken).__name__):
        Pipeline((broken,))(captured())


def test_a_pass_may_change_the_meaning_when_it_says_so():
    graph, (record,) = Pipeline((LoseItOnPurpose(),))(captured())

    assert Kind.STEP not in graph.count()
    assert record.acted
    assert "state:subject 0" in record.lost


def test_a_record_counts_nodes_and_operators():
    before = captured()
    kinds, regions = before.count(), [r for r in map(before.region, before.nodes) if r]
    inner = sum(n.op == "call_function" for r in regions for n in r.graph.nodes)

    graph, (record,) = Pipeline((DropUnusedNorm(),))(captured())

    assert record.name == "DropUnusedNorm()"
    assert record.nodes_before == sum(kinds.values())
    assert record.operators_before == inner + sum(kinds.values()) - len(regions)
    assert record.nodes_after == sum(graph.count().values()) == record.nodes_before - 1
    assert record.ms > 0


def test_a_record_says_what_work_is_gone():
    _, (record,) = Pipeline((DropUnusedNorm(),))(captured())

    assert record.launches_saved == 3  # square, sum, sqrt
    grad, number = 4 * 9, 4
    assert record.bytes_saved == (2 * grad) + (grad + number) + (2 * number)
    assert record.flops_saved == 0


@dataclass(frozen=True)
class SayIt(Pass):
    def __call__(self, step):
        step.say("moved 1 of 1")
        return partition(flatten(step))


def test_what_a_pass_says_is_in_its_record_only():
    _, (first, second, third) = Pipeline((SayIt(), DropUnusedNorm(), DropUnusedNorm()))(captured())

    assert first.did == ("moved 1 of 1",)
    assert first.acted
    assert second.did == third.did == ()
    assert not third.acted
