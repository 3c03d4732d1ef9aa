"""State of Python that a trace would freeze, and objects replaced between calls."""

import itertools
from collections import Counter

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from capture.fallbacks.world import World, plain, program
from support.harness import (
    Program,
    assert_captured_or_explained,
    mlp,
    regression,
    same_as_eager,
)


def reads_a_list(world, x, y):
    loss = world.update(world.loss(x, y))
    world.losses.append(loss.detach())
    return sum(world.losses) / len(world.losses)


def reads_the_end_of_a_list(world, x, y):
    scale = world.losses[-1] if world.losses else torch.ones(())
    loss = world.update(world.loss(x, y) * scale)
    world.losses.append(loss.detach())


def pops_from_a_list(world, x, y):
    loss = world.update(world.loss(x, y))
    world.losses.append(loss.detach())
    return world.losses.pop(0) if len(world.losses) > 3 else None


def sorts_a_list(world, x, y):
    world.losses.append(float(len(world.losses) % 3))
    world.losses.sort()
    return world.update(world.loss(x, y) * world.losses[0])


READING = [reads_a_list, reads_the_end_of_a_list, pops_from_a_list, sorts_a_list]


@pytest.mark.parametrize("body", READING)
def test_a_list_that_the_step_reads_is_exact(body):
    step = same_as_eager(program(body), calls=12)

    assert_captured_or_explained(step)
    assert step.explain().captures <= 8


def from_an_iterator(source):
    """A step that draws its own batches from `source`."""

    def make():
        world = World()
        batches = iter(source())

        def step():
            return plain(world, *next(batches))

        return Program(step, watch=world)

    return make


def batches():
    for index in range(20):
        yield regression(index)


ITERATORS = {
    "generator": batches,
    "list": lambda: list(batches()),
    "map": lambda: map(regression, range(20)),
    "zip": lambda: zip(*zip(*batches(), strict=True), strict=True),
    "data loader": lambda: torch.utils.data.DataLoader(list(batches()), batch_size=None),
}


@pytest.mark.parametrize("name", ITERATORS)
def test_a_step_that_fetches_its_own_batch_is_exact(name):
    assert_captured_or_explained(same_as_eager(from_an_iterator(ITERATORS[name])))


def test_an_iterator_that_counts_calls_is_exact():
    def make():
        world, count = World(), itertools.count()

        def step(x, y):
            return plain(world, x * next(count), y)

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=12))


def counts_in_a_counter(world, x, y):
    world.counter["calls"] += 1
    return world.update(world.loss(x, y))


def counts_in_an_attribute(world, x, y):
    world.calls = getattr(world, "calls", 0) + 1
    return world.update(world.loss(x, y) * (1.0 + world.calls % 3))


def counts_in_a_dict(world, x, y):
    world.numbers["calls"] = world.numbers.get("calls", 0) + 1
    return world.update(world.loss(x, y) / world.numbers["calls"])


@pytest.mark.parametrize("body", [counts_in_a_counter, counts_in_an_attribute, counts_in_a_dict])
def test_counters_of_the_user_count(body):
    def make():
        inner = program(body)()
        inner.watch.counter, inner.watch.numbers = Counter(), {}
        return inner

    assert_captured_or_explained(same_as_eager(make, calls=12))


def test_a_counter_in_a_closure_counts():
    def make():
        world, count = World(), 0

        def step(x, y):
            nonlocal count
            count += 1
            return plain(world, x * (count % 3), y), count

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make, calls=12))


def replaces_a_parameter(world, index):
    if index == 4:
        world.net[2].weight = nn.Parameter(torch.full((2, 5), 0.25))


def replaces_data(world, index):
    if index == 4:
        world.net[2].weight.data = torch.full((2, 5), 0.25)


def replaces_a_layer(world, index):
    if index == 4:
        world.net[2] = nn.Linear(5, 2, bias=False)


def replaces_the_optimizer(world, index):
    if index == 4:
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.01)


def changes_the_kind_of_optimizer(world, index):
    if index == 4:
        world.opt = torch.optim.Adam(world.net.parameters(), lr=0.01)


def replaces_the_model(world, index):
    if index == 4:
        world.net = mlp(hidden=7)
        world.opt = torch.optim.SGD(world.net.parameters(), lr=0.1)


def freezes_a_layer(world, index):
    if index in (4, 7):
        world.net[0].requires_grad_(index == 7)


def freezes_everything_for_a_call(world, index):
    if index in (4, 5):
        world.net.requires_grad_(index == 5)


def loads_in_place(world, index):
    if index == 4:
        world.net.load_state_dict({k: v + 1 for k, v in world.net.state_dict().items()})


def loads_by_assignment(world, index):
    if index == 4:
        state = {k: v + 1 for k, v in world.net.state_dict().items()}
        world.net.load_state_dict(state, assign=True)


def ties_two_weights(world, index):
    if index == 4:
        world.net[0].bias.data = world.net[2].weight.data[0]


def sets_a_gradient(world, index):
    if index in (3, 5):
        world.net[0].weight.grad = torch.full((5, 4), float(index))


def shares_a_gradient(world, index):
    if index == 4:
        world.net[0].bias.grad = world.net[2].weight.new_zeros(5)
        world.seen.append(world.net[0].bias.grad)


def converts_to_double(world, index):
    if index == 4:
        world.net.double()


def patches_a_forward(world, index):
    if index == 4:
        world.net[1].forward = torch.relu


def wraps_the_loss(world, index):
    if index == 4:
        inner = world.loss
        world.loss = lambda x, y: inner(x, y) * 2


def patches_the_optimizer(world, index):
    if index == 4:
        inner = world.opt.step
        world.opt.step = lambda: (world.seen.append(len(world.seen)), inner())[1]


def prunes_a_weight(world, index):
    if index == 4:
        nn.utils.prune.l1_unstructured(world.net[0], "weight", amount=3)


REPLACEMENTS = [
    replaces_a_parameter,
    replaces_data,
    replaces_a_layer,
    replaces_the_optimizer,
    changes_the_kind_of_optimizer,
    replaces_the_model,
    freezes_a_layer,
    freezes_everything_for_a_call,
    loads_in_place,
    loads_by_assignment,
    ties_two_weights,
    sets_a_gradient,
    shares_a_gradient,
    patches_a_forward,
    wraps_the_loss,
    patches_the_optimizer,
    prunes_a_weight,
]


def accumulating(world, x, y):
    loss = world.loss(x, y)
    loss.backward()
    world.opt.step()
    return loss


@pytest.mark.parametrize("between", REPLACEMENTS)
def test_what_is_replaced_between_the_calls_is_used(between):
    step = same_as_eager(program(plain, between=between), calls=10)

    assert step.explain().captured


@pytest.mark.parametrize(
    "between",
    [
        replaces_a_parameter,
        freezes_a_layer,
        loads_by_assignment,
        sets_a_gradient,
        shares_a_gradient,
    ],
)
def test_what_is_replaced_under_accumulated_gradients_is_used(between):
    step = same_as_eager(program(accumulating, between=between), calls=10)

    assert step.explain().captured


def test_a_model_converted_to_another_dtype_is_used():
    def body(world, x, y):
        return plain(world, x.to(world.net[0].weight.dtype), y.to(world.net[0].weight.dtype))

    step = same_as_eager(program(body, between=converts_to_double), calls=8)

    assert step.explain().captured
