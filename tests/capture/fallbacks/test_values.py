"""Values and randomness of the host that Python reads in a step."""

import random

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch.nn import functional

from capture.fallbacks.world import program
from support.harness import (
    assert_captured,
    assert_falls_back,
    same_as_eager,
)


def branch_on_a_loss(world, x, y):
    loss = world.loss(x, y)
    return world.update(loss * 0.5 if loss > 1.2 else loss)


def branch_on_an_item(world, x, y):
    loss = world.loss(x, y)
    if loss.item() > 1.2:
        return None
    return world.update(loss)


def loop_until_small(world, x, y):
    scale = x.abs().sum()
    while scale > 4:
        scale = scale / 2
    return world.update(world.loss(x, y) * scale)


def ternary_on_finiteness(world, x, y):
    loss = world.update(world.loss(x, y))
    return "finite" if torch.isfinite(loss).all() else "broken"


def range_over_a_tensor(world, x, y):
    loss = world.loss(x, y)
    for _ in range(int(x.sum().abs()) % 3):
        loss = loss + world.loss(x, y)
    return world.update(loss)


def dictionary_keyed_by_a_value(world, x, y):
    scale = {0: 1.0, 1: 2.0}[int(x.sum() > 0)]
    return world.update(world.loss(x, y) * scale)


def compare_with_none_and_a_value(world, x, y):
    loss = world.loss(x, y)
    best = min([loss.detach(), *world.seen])
    world.seen[:] = [best]
    return world.update(loss)


LOOKING = {
    function.__name__: function
    for function in [
        branch_on_a_loss,
        branch_on_an_item,
        loop_until_small,
        ternary_on_finiteness,
        range_over_a_tensor,
        dictionary_keyed_by_a_value,
        compare_with_none_and_a_value,
    ]
}


@pytest.mark.parametrize("name", LOOKING)
def test_python_that_looks_at_values_runs_eagerly(name):
    step = same_as_eager(program(LOOKING[name]))

    assert_falls_back(step, "data", "value", "branch", "tensor", "list")
    assert not step.explain().captured


def picks_rows(world, x, y):
    keep = x.sum(1) > 0
    return world.update(functional.mse_loss(world.net(x[keep]), y[keep]))


def counts_values(world, x, y):
    values, counts = torch.unique((x > 0).long().sum(1), return_counts=True)
    return world.update(world.loss(x, y) * counts.float().mean()), values


@pytest.mark.parametrize("body", [picks_rows, counts_values])
def test_shapes_that_depend_on_values_are_captured(body):
    step = same_as_eager(program(body))

    if body is picks_rows and torch.__version__.startswith("2.11."):
        # the loss broadcasts two sizes, and this torch asks whether one of them is 1
        assert_falls_back(step, "data-dependent")
    else:
        assert_captured(step)


def of_numpy(world, x, y):
    return world.update(world.loss(x, y) * float(np.random.rand()))


def of_a_numpy_generator(world, x, y):
    return world.update(world.loss(x, y) * world.numpy.random())


def of_random(world, x, y):
    return world.update(world.loss(x, y) * random.random())


def of_a_random_instance(world, x, y):
    return world.update(world.loss(x, y) * world.random.uniform(0.5, 2))


def of_a_choice(world, x, y):
    return world.update(world.loss(x, y) * random.choice([0.5, 2.0]))


def of_a_torch_generator(world, x, y):
    return world.update(world.loss(x + torch.rand(4, generator=world.generator), y))


def of_a_reseeded_generator(world, x, y):
    world.generator.manual_seed(1)
    return world.update(world.loss(x + torch.rand(4, generator=world.generator), y))


def of_a_seed_in_the_step(world, x, y):
    torch.manual_seed(len(x))
    return world.update(world.loss(x + torch.rand(4), y))


def of_a_state_put_back(world, x, y):
    state = torch.get_rng_state()
    noise = torch.rand(4)
    torch.set_rng_state(state)
    return world.update(world.loss(x + noise + torch.rand(4), y))


def of_a_fork(world, x, y):
    with torch.random.fork_rng():
        noise = torch.rand(4)
    return world.update(world.loss(x + noise, y))


HOST_RANDOMNESS = [
    of_numpy,
    of_a_numpy_generator,
    of_random,
    of_a_random_instance,
    of_a_choice,
    of_a_torch_generator,
    of_a_reseeded_generator,
    of_a_seed_in_the_step,
    of_a_state_put_back,
    of_a_fork,
]


@pytest.mark.parametrize("body", HOST_RANDOMNESS)
def test_randomness_of_the_host_runs_eagerly(body):
    step = same_as_eager(program(body))

    assert_falls_back(step, "random", "generator", "seed", "rng", "numpy")
    assert not step.explain().captured


def test_a_gradient_that_is_deleted_runs_eagerly():
    def deletes(world, x, y):
        loss = world.update(world.loss(x, y))
        del world.net[0].weight.grad
        return loss

    assert_falls_back(same_as_eager(program(deletes)), "deletes an attribute of a tensor")
