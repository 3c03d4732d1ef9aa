"""Loss scaling: captured, or a named fallback, but always exact."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    mlp,
    regression,
    same_as_eager,
)


class Scaled:
    """A perceptron trained under a gradient scaler; some calls overflow."""

    def __init__(self, **options):
        self.net = mlp()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3, **options)
        self.logged = []

    def backward(self, x, y):
        self.optimizer.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        self.scaler.scale(loss).backward()
        return loss


def overflowing(*calls):
    def batch(index):
        x, y = regression(index)
        return (x * float("inf") if index in calls else x), y

    return batch


def plain(world, x, y):
    loss = world.backward(x, y)
    world.scaler.step(world.optimizer)
    world.scaler.update()
    return loss


def clipped(world, x, y):
    loss = world.backward(x, y)
    world.scaler.unscale_(world.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
    world.scaler.step(world.optimizer)
    world.scaler.update()
    return loss, norm


def logging_the_scale(world, x, y):
    loss = plain(world, x, y)
    world.logged.append(world.scaler.get_scale())
    return loss


def returning_what_step_returns(world, x, y):
    world.backward(x, y)
    result = world.scaler.step(world.optimizer)
    world.scaler.update()
    return result


def under_autocast(world, x, y):
    world.optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = functional.mse_loss(world.net(x).float(), y)
    world.scaler.scale(loss).backward()
    world.scaler.step(world.optimizer)
    world.scaler.update()
    return loss


def updating_to_a_scale(world, x, y):
    world.backward(x, y)
    world.scaler.step(world.optimizer)
    world.scaler.update(new_scale=32.0)


BODIES = [
    plain,
    clipped,
    logging_the_scale,
    returning_what_step_returns,
    under_autocast,
    updating_to_a_scale,
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("overflows", [(), (0,), (1,), (2, 5, 6)])
def test_a_scaled_step_skips_exactly_the_updates_that_overflow(body, overflows):
    def make():
        world = Scaled()

        def step(x, y):
            return body(world, x, y)

        return Program(step, overflowing(*overflows), watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_a_scaler_that_is_switched_off_changes_nothing():
    def make():
        world = Scaled(enabled=False)

        def step(x, y):
            return logging_the_scale(world, x, y)

        return Program(step, regression, watch=world)

    assert_captured(same_as_eager(make))


def test_one_scaler_serves_two_optimizers():
    def make():
        first, second = nn.Linear(4, 3), nn.Linear(3, 2)
        one = torch.optim.SGD(first.parameters(), lr=0.1)
        two = torch.optim.Adam(second.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

        def step(x, y):
            one.zero_grad()
            two.zero_grad()
            loss = functional.mse_loss(second(first(x)), y)
            scaler.scale(loss).backward()
            scaler.step(one)
            scaler.step(two)
            scaler.update()
            return loss

        return Program(step, overflowing(3, 6))

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_scaled_gradients_accumulate_over_two_calls():
    def make():
        world = Scaled()

        def step(x, y, index):
            loss = functional.mse_loss(world.net(x), y) / 2
            world.scaler.scale(loss).backward()
            if index % 2:
                world.scaler.step(world.optimizer)
                world.scaler.update()
                world.optimizer.zero_grad()
            return loss

        batch = overflowing(5)
        return Program(step, lambda index: (*batch(index), index))

    assert_captured_or_explained(same_as_eager(make, calls=12))


def test_a_schedule_follows_updates_that_were_not_skipped():
    def make():
        world = Scaled()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(world.optimizer, 0.9)

        def step(x, y):
            before = world.scaler.get_scale()
            loss = plain(world, x, y)
            if world.scaler.get_scale() >= before:
                scheduler.step()
            return loss

        return Program(step, overflowing(3, 6))

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_unscaling_twice_raises_as_in_eager():
    def make():
        world = Scaled()

        def step(x, y, twice):
            world.backward(x, y)
            world.scaler.unscale_(world.optimizer)
            if twice:
                world.scaler.unscale_(world.optimizer)
            world.scaler.step(world.optimizer)
            world.scaler.update()

        return Program(step, lambda index: (*regression(index), index == 5))

    assert_captured_or_explained(same_as_eager(make))


def test_the_state_of_a_scaler_is_loaded_between_calls():
    def make():
        world = Scaled()

        def step(x, y):
            return plain(world, x, y)

        def between(index):
            if index == 5:
                world.scaler.load_state_dict({**world.scaler.state_dict(), "scale": 2.0})

        return Program(step, regression, between=between)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_what_a_scaler_and_an_optimizer_compute_is_said_to_be_at_the_users_line():
    world = Scaled()
    step = stepgraph.compile(lambda x, y: clipped(world, x, y), backend="eager")
    for index in range(2):
        step(*regression(index))

    (graph,) = step.captured_graphs
    lines = [node.meta.get("stepgraph.at") for node in graph.flat().graph.nodes]

    files = {line.rpartition(":")[0] for line in lines if line}
    assert files == {__file__}
