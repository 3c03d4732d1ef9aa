"""Tensors of other kinds, and results with a live graph."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn import functional

import stepgraph
from capture.fallbacks.world import World, plain, program
from support.harness import (
    Program,
    assert_captured_or_explained,
    assert_falls_back,
    draw,
    draw_labels,
    regression,
    same_as_eager,
)


class Marked(torch.Tensor):
    """A tensor subclass that doubles every sum of squares."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 2 if function is functional.mse_loss else result


def marked_batch(index):
    x, y = regression(index)
    return x.as_subclass(Marked), y


def test_a_batch_of_a_tensor_subclass_runs_exactly():
    step = same_as_eager(program(plain, batch=marked_batch))

    assert_falls_back(step, "subclass")


def test_a_batch_that_becomes_a_tensor_subclass_runs_exactly():
    def batch(index):
        return marked_batch(index) if index in (4, 5) else regression(index)

    assert_captured_or_explained(same_as_eager(program(plain, batch=batch)))


def test_a_parameter_of_a_tensor_subclass_runs_exactly():
    class Weight(nn.Parameter):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            return result * 2 if function is functional.linear else result

    def make():
        world = World()
        world.net[2].weight = Weight(world.net[2].weight.detach().clone())
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.1)
        return Program(lambda x, y: plain(world, x, y), regression, watch=world)

    assert_captured_or_explained(same_as_eager(make))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients_run_exactly(optimizer):
    def make():
        net = nn.EmbeddingBag(9, 3, sparse=True, mode="sum")
        opt = optimizer(net.parameters(), lr=0.1)

        def step(tokens, y):
            opt.zero_grad()
            loss = functional.mse_loss(net(tokens), y)
            loss.backward()
            opt.step()
            return loss

        def batch(index):
            return draw_labels(4, 5, below=9, seed=index), draw(4, 3, seed=index)

        return Program(step, batch)

    assert_falls_back(same_as_eager(make), "sparse")


def test_a_batch_that_is_sparse_runs_exactly():
    def body(world, x, y):
        return world.update(functional.mse_loss(torch.sparse.mm(x, world.net[0].weight.t()), y))

    def batch(index):
        return draw(6, 4, seed=index).relu().to_sparse(), draw(6, 5, seed=index)

    assert_captured_or_explained(same_as_eager(program(body, batch=batch)))


def test_a_batch_of_numpy_arrays_runs_exactly():
    def body(world, x, y):
        return world.update(world.loss(torch.from_numpy(x), torch.as_tensor(y)))

    def batch(index):
        return tuple(t.numpy() for t in regression(index))

    assert_captured_or_explained(same_as_eager(program(body, batch=batch)))


def test_a_computation_in_numpy_runs_exactly():
    def body(world, x, y):
        scale = np.tanh(x.numpy()).sum()
        return world.update(world.loss(x, y) * float(scale))

    assert_captured_or_explained(same_as_eager(program(body)))


def live_results(compiler, body, use):
    torch.manual_seed(0)
    world = World()
    step = compiler(lambda x, y: body(world, x, y))
    for index in range(6):
        use(world, step(*regression(index)))
    weights = [p.detach().clone() for p in world.net.parameters()]
    return weights, [None if p.grad is None else p.grad.clone() for p in world.net.parameters()]


def only_a_forward(world, x, y):
    return world.loss(x, y)


def forward_beside_an_update(world, x, y):
    world.update(world.loss(x, y))
    return {"next": [world.loss(x, y)]}


def graph_retained(world, x, y):
    loss = world.loss(x, y)
    world.opt.zero_grad()
    loss.backward(retain_graph=True)
    return loss


def gradient_with_a_graph(world, x, y):
    loss = world.loss(x, y)
    (gradient,) = torch.autograd.grad(loss, [world.net[0].weight], create_graph=True)
    return gradient.square().sum()


def trained_outside(world, result):
    while not isinstance(result, torch.Tensor):
        result = result["next"] if isinstance(result, dict) else result[0]
    world.opt.zero_grad()
    result.backward()
    world.opt.step()


@pytest.mark.parametrize(
    "body", [only_a_forward, forward_beside_an_update, graph_retained, gradient_with_a_graph]
)
def test_a_result_with_a_live_graph_can_be_backpropagated_by_the_caller(body):
    steps = []

    def compiler(step):
        steps.append(stepgraph.compile(step, on_fallback="silent"))
        return steps[-1]

    eager = live_results(lambda step: step, body, trained_outside)
    compiled = live_results(compiler, body, trained_outside)

    assert all(map(torch.equal, eager[0], compiled[0]))
    assert all(map(torch.equal, eager[1], compiled[1]))
    assert_falls_back(steps[0], "live graph")


def test_of_a_live_graph_the_line_that_made_the_value_is_told():
    scale = torch.ones((), requires_grad=True)
    world = World()

    @stepgraph.compile(on_fallback="silent")
    def step(x, y):
        loss = world.loss(x, y)
        world.update(loss)
        return loss, scale.exp()

    for index in range(2):
        step(*regression(index))

    (fallback,) = step.explain().fallbacks
    line = step.__wrapped__.__code__.co_firstlineno + 4
    assert fallback.at == f"{__file__}:{line}"
    assert "detach" in fallback.hint


def test_an_error_in_the_step_is_told_by_eager_alone(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    world = World()
    step = stepgraph.compile(lambda x, y: world.update(world.loss(x, y)), on_fallback="silent")
    x, y = regression(0)
    step(x, y)
    step(x, y)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step(x[:, :2], y)

    assert not caplog.records


def test_a_live_graph_kept_in_a_list_of_the_user_is_not_detached():
    def body(world, x, y):
        loss = world.loss(x, y)
        world.losses.append(loss)

    def use(world, result):
        if len(world.losses) == 2:
            world.opt.zero_grad()
            sum(world.losses).backward()
            world.opt.step()
            world.losses.clear()

    eager = live_results(lambda step: step, body, use)
    compiled = live_results(stepgraph.compile(on_fallback="silent"), body, use)

    assert all(map(torch.equal, eager[0], compiled[0]))
    assert all(map(torch.equal, eager[1], compiled[1]))
