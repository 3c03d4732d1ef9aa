"""Gradients that the user keeps, changes or replaces between calls, or stores in the step.

Which `.grad` is still the object of the call before is compared, too.
"""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import Program, regression, same_as_eager
from support.replay_log import ReplayLog


class World:
    """A perceptron with square layers, and a layer in no optimizer."""

    def __init__(self):
        self.net = nn.Sequential(
            nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
        )
        self.other = nn.Linear(4, 2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.kept = []

    @property
    def parameters(self):
        return list(self.net.parameters())

    @property
    def weight(self):
        return self.net[0].weight

    @property
    def second(self):
        return self.net[2].weight

    def loss(self, x, y):
        return functional.mse_loss(self.net(x), y)


def gradients_of(body, between=lambda world, index: None):
    """A program that notes before each call which gradients are those of the call before."""

    def make():
        world, same, before = World(), [], [None] * 6

        def step(x, y, flag):
            return body(world, x, y, flag)

        def prepare(index):
            now = [p.grad for p in world.parameters]
            same.append([new is old for new, old in zip(now, before, strict=True)])
            between(world, index)
            before[:] = [p.grad for p in world.parameters]

        def batch(index):
            return (*regression(index), index % 3 == 0)

        return Program(step, batch, watch=[world, same, before], between=prepare)

    return make


# --- what the step does with its gradients in the plain way


def clears_first(world, x, y, flag):
    world.optimizer.zero_grad()
    loss = world.loss(x, y)
    loss.backward()
    world.optimizer.step()
    return loss.detach()


def clears_after_the_forward(world, x, y, flag):
    loss = world.loss(x, y)
    world.optimizer.zero_grad()
    loss.backward()
    world.optimizer.step()
    return loss.detach()


def fills_with_zeros(world, x, y, flag):
    world.optimizer.zero_grad(set_to_none=False)
    world.loss(x, y).backward()
    world.optimizer.step()


def accumulates(world, x, y, flag):
    loss = world.loss(x, y)
    loss.backward()
    world.optimizer.step()
    return loss.detach()


def accumulates_and_returns(world, x, y, flag):
    accumulates(world, x, y, flag)
    return [p.grad for p in world.parameters]


CLEARING = [clears_first, clears_after_the_forward]
ADDING = [fills_with_zeros, accumulates, accumulates_and_returns]

# --- what the user does to them; only the second list tells steps that add up anything new


def keeps_the_old_ones(world):
    world.kept.append([p.grad for p in world.parameters])


def keeps_and_writes_old_ones(world):
    keeps_the_old_ones(world)
    for gradient in world.kept[0]:
        gradient.add_(1)


def replaces_them_by_clones(world):
    for p in world.parameters:
        p.grad = p.grad.clone()


def writes_them(world):
    world.weight.grad.mul_(0.5)
    world.second.grad.zero_()


def replaces_one(world):
    world.weight.grad = torch.ones(4, 4)


def exchanges_two(world):
    world.weight.grad, world.second.grad = world.second.grad, world.weight.grad


def replaces_the_data_of_one(world):
    world.weight.grad.data = torch.ones(4, 4)


def makes_them_views_of_one_tensor(world):
    flat = torch.zeros(sum(p.numel() for p in world.parameters))
    parts = flat.split([p.numel() for p in world.parameters])
    for p, part in zip(world.parameters, parts, strict=True):
        p.grad = part.view_as(p)
    world.kept.append(flat)


def gives_the_momentum_of_one(world):
    world.weight.grad = world.optimizer.state[world.weight]["momentum_buffer"]


def gives_another_weight(world):
    world.weight.grad = world.second.detach()


def backpropagates(world):
    world.net(torch.ones(2, 4)).square().mean().backward()


def updates(world):
    world.optimizer.step()


def gives_one_to_a_layer_of_no_use(world):
    world.other.weight.grad = torch.ones(2, 4)


def clears_one(world):
    world.weight.grad = None


def keeps_one_and_clears_it(world):
    world.kept.append(world.weight.grad)
    world.weight.grad = None


def clears_all(world):
    world.net.zero_grad()


def transposes_one(world):
    world.weight.grad = torch.ones(4, 4).t()


def gives_every_other_column(world):
    world.weight.grad = torch.ones(4, 8)[:, ::2]


def gives_one_that_requires_a_gradient(world):
    world.weight.grad = torch.ones(4, 4, requires_grad=True)


def gives_a_parameter(world):
    world.weight.grad = nn.Parameter(torch.ones(4, 4))


ANYWHERE = [
    keeps_the_old_ones,
    keeps_and_writes_old_ones,
    replaces_them_by_clones,
    writes_them,
    replaces_one,
    exchanges_two,
    replaces_the_data_of_one,
    makes_them_views_of_one_tensor,
    gives_the_momentum_of_one,
    gives_another_weight,
    backpropagates,
    updates,
    gives_one_to_a_layer_of_no_use,
]
OTHER_PATHS = [
    clears_one,
    keeps_one_and_clears_it,
    clears_all,
    transposes_one,
    gives_every_other_column,
]
OF_ANOTHER_KIND = [gives_one_that_requires_a_gradient, gives_a_parameter]


def at(calls, change):
    """A change made before each of these calls."""
    return lambda world, index: change(world) if index in calls else None


FIRST = 4  # the call before which the first of several changes is made


def in_turn(changes):
    """One change after the other, each before two calls, so that one capture serves all."""

    def between(world, index):
        if index >= FIRST:
            changes[(index - FIRST) // 2](world)

    return between


def assert_replays_through(body, changes):
    """Assert that a program with these changes is exact and replays every call behind the first."""
    calls = FIRST + 2 * len(changes)
    step = same_as_eager(gradients_of(body, in_turn(changes)), calls=calls, compiler=ReplayLog)

    missed = [
        f"call {index}, after {changes[(index - FIRST) // 2].__name__}"
        for index in range(FIRST, calls)
        if not step.replayed[index]
    ]
    assert not missed
    assert step.replayed[2:FIRST] == [True] * 2


@pytest.mark.parametrize("body", CLEARING)
def test_a_step_that_clears_gradients_replays_whatever_was_done_to_them(body):
    assert_replays_through(body, [*ANYWHERE, *OTHER_PATHS, *OF_ANOTHER_KIND])


@pytest.mark.parametrize("body", ADDING)
def test_a_step_that_adds_to_gradients_adds_to_those_of_the_user(body):
    assert_replays_through(body, ANYWHERE)


SEEN = [
    *((body, change) for body in ADDING for change in OTHER_PATHS),
    *((accumulates, change) for change in OF_ANOTHER_KIND),
]


@pytest.mark.filterwarnings("ignore:grad and param do not obey")  # torch says it once in a process
@pytest.mark.parametrize(("body", "change"), SEEN)
def test_a_step_that_adds_to_gradients_sees_them_missing_or_of_another_layout(body, change):
    step = same_as_eager(gradients_of(body, at({4, 6}, change)), calls=9, compiler=ReplayLog)

    assert step.replayed[2:4] == [True] * 2
    assert step.replayed[-1]
    assert step.explain().captures <= 3


# --- gradients stored by the step itself


def sets_them_by_hand(world, x, y, flag):
    gradients = torch.autograd.grad(world.loss(x, y), world.parameters)
    for p, gradient in zip(world.parameters, gradients, strict=True):
        p.grad = gradient
    world.optimizer.step()
    return gradients


def adds_them_by_hand(world, x, y, flag):
    gradients = torch.autograd.grad(world.loss(x, y), world.parameters)
    for p, gradient in zip(world.parameters, gradients, strict=True):
        p.grad = gradient if p.grad is None else p.grad + gradient
    world.optimizer.step()


def after_backward(change):
    """A step that changes gradients between the backward and the update."""

    @functools.wraps(change)
    def body(world, x, y, flag):
        world.optimizer.zero_grad()
        loss = functional.mse_loss(world.net(x) + world.other(x), y)
        loss.backward()
        change(world, x, flag)
        world.optimizer.step()
        return loss.detach()

    return body


@after_backward
def doubles_one(world, x, flag):
    world.weight.grad = world.weight.grad * 2


@after_backward
def drops_one(world, x, flag):
    world.weight.grad = None


@after_backward
def sometimes_drops_one(world, x, flag):
    if flag:
        world.weight.grad = None


@after_backward
def swaps_two(world, x, flag):
    world.weight.grad, world.second.grad = world.second.grad, world.weight.grad


@after_backward
def gives_one_to_two(world, x, flag):
    world.weight.grad = world.second.grad


@after_backward
def stores_the_transposed(world, x, flag):
    world.weight.grad = world.second.grad.t()


@after_backward
def keeps_one_in_an_attribute(world, x, flag):
    world.kept_gradient = world.weight.grad


@after_backward
def halves_one_that_no_optimizer_has(world, x, flag):
    world.other.weight.grad = world.other.weight.grad * 0.5


@after_backward
def stores_a_part_of_the_batch(world, x, flag):
    world.weight.grad = x[:4]


def puts_one_aside(world, x, y, flag):
    world.loss(x, y).backward()
    aside, world.weight.grad = world.weight.grad, None
    world.optimizer.step()
    world.weight.grad = aside


def uses_a_layer_sometimes(world, x, y, flag):
    hidden = torch.tanh(world.net[0](x))
    if flag:
        hidden = torch.tanh(world.net[2](hidden))
    functional.mse_loss(world.net[4](hidden), y).backward()
    world.optimizer.step()


STORING = [
    sets_them_by_hand,
    adds_them_by_hand,
    doubles_one,
    drops_one,
    sometimes_drops_one,
    swaps_two,
    gives_one_to_two,
    stores_the_transposed,
    keeps_one_in_an_attribute,
    halves_one_that_no_optimizer_has,
    stores_a_part_of_the_batch,
    puts_one_aside,
    uses_a_layer_sometimes,
]


def writes_into_earlier_ones(world, index):
    with torch.no_grad():
        for gradient in world.kept:
            gradient.add_(0.25)
    world.kept = [p.grad for p in world.parameters if p.grad is not None]


def clears_one_twice(world, index):
    if index in (4, 6):
        world.weight.grad = None


def writes_and_clears(world, index):
    writes_into_earlier_ones(world, index)
    clears_one_twice(world, index)


@pytest.mark.parametrize("body", STORING)
def test_a_gradient_that_the_step_stores_is_stored_as_in_eager(body):
    step = same_as_eager(gradients_of(body, writes_and_clears), calls=11, compiler=ReplayLog)

    assert step.replayed[-2:] == [True] * 2
    assert step.explain().captures <= 4
