"""Changes beside one model and its optimizer, while a step replays.

Batches that are parameters, parameters that no module holds, two optimizers, averages.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import Program, assert_captured, draw, regression, same_as_eager
from support.replay_log import ReplayLog, assert_replays_again, between


def changing(change, world, step, batch=regression):
    """A program in which one thing changes at one call, and maybe changes back at a later one."""
    return Program(step, batch, watch=world, between=between(change, world))


# --- batches


class Square:
    """A model whose batches are as large as its weights."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.other = nn.Linear(4, 4)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def train(self, x):
        self.optimizer.zero_grad()
        loss = self.net(x).square().mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            return loss.detach(), self.net(x), x * 2


GOES_ON = {
    "memory of a parameter": lambda w: w.net[0].weight.detach(),
    "a gradient": lambda w: w.net[0].weight.grad,
    "a momentum": lambda w: w.optimizer.state[w.net[0].weight]["momentum_buffer"],
    "memory of another layer": lambda w: w.other.weight.detach(),
}
CAPTURED_AGAIN = {
    "a parameter": lambda w: w.net[0].weight,
    "a later parameter": lambda w: w.net[2].weight,
    "a parameter of another layer": lambda w: w.other.weight,
    "transposed memory of a parameter": lambda w: w.net[2].weight.detach().t(),
    "a parameter of its own": lambda w: nn.Parameter(torch.ones(4, 4)),
    "a frozen parameter of its own": lambda w: nn.Parameter(torch.ones(4, 4), requires_grad=False),
    "a tensor that requires a gradient": lambda w: torch.ones(4, 4, requires_grad=True),
    "a view of a parameter": lambda w: w.net[2].weight.view(4, 4),
}


@pytest.mark.parametrize("name", [*GOES_ON, *CAPTURED_AGAIN])
def test_a_batch_may_be_of_the_model(name):
    def make():
        world, pick = Square(), (GOES_ON | CAPTURED_AGAIN)[name]

        def batch(index):
            return (pick(world) if index in (4, 5, 7) else draw(4, 4, seed=index),)

        return Program(world.train, batch, watch=world)

    step = same_as_eager(make, calls=9, compiler=ReplayLog)

    assert [step.replayed[index] for index in (2, 3, 6, 8)] == [True] * 4
    assert name not in GOES_ON or step.replayed[2:] == [True] * 7
    assert step.explain().captures <= 3


REPEATED = {
    "a row of a weight": lambda w: w.net[2].weight.detach()[:1],
    "a bias": lambda w: w.net[0].bias.detach(),
    "a buffer": lambda w: w.net.seen,
    "something new": lambda w: torch.ones(1, 4),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_batch_may_repeat_what_the_step_writes(name):
    def make():
        world, pick = Square(), REPEATED[name]
        world.net.register_buffer("seen", torch.zeros(1, 4))

        def step(x):
            loss = world.net(2 * x).square().mean()  # the batch is met before what it is a view of
            world.optimizer.zero_grad()
            loss.backward()
            world.optimizer.step()
            world.net.seen.add_(1)
            return loss.detach()

        return Program(step, lambda index: (pick(world).expand(4, 4),), watch=world)

    assert_captured(same_as_eager(make))


# --- parameters that no module holds


class Box:
    """A plain object."""


class Plain:
    """Parameters in a list, a dict and an attribute; two are plain tensors."""

    def __init__(self):
        self.list = [torch.randn(4, 4, requires_grad=True), nn.Parameter(torch.randn(4))]
        self.dict = {"last": torch.randn(4, 4, requires_grad=True)}
        self.box, self.spare = Box(), torch.randn(4, 4, requires_grad=True)
        self.box.bias = nn.Parameter(torch.randn(4))
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.01)

    @property
    def parameters(self):
        return [*self.list, self.dict["last"], self.box.bias]

    def backward(self, x):
        hidden = torch.tanh(x @ self.list[0] + self.list[1])
        loss = (hidden @ self.dict["last"] + self.box.bias).square().mean()
        loss.backward()
        return loss.detach()

    def train(self, x):
        self.optimizer.zero_grad()
        loss = self.backward(x)
        self.optimizer.step()
        return loss

    def train_by_hand(self, x):
        for p in self.parameters:
            p.grad = None
        loss = self.backward(x)
        with torch.no_grad():
            for p in self.parameters:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)
        return loss


def one_is_frozen(world):
    world.list[0].requires_grad_(False)
    return lambda: world.list[0].requires_grad_(True)


def one_has_other_strides(world):
    world.list[0].data = torch.randn(4, 4).t()


def one_is_lent(world):
    own, world.list[0] = world.list[0], world.spare
    return lambda: world.list.__setitem__(0, own)


def one_in_a_dict_is_lent(world):
    own, world.dict["last"] = world.dict["last"], world.spare
    return lambda: world.dict.update(last=own)


def one_in_an_attribute_is_new(world):
    world.box.bias = nn.Parameter(torch.ones(4))


def the_object_around_one_is_new(world):
    box = Box()
    box.bias, world.box = world.box.bias, box


def two_change_places(world):
    world.list[0], world.dict["last"] = world.dict["last"], world.list[0]


def the_list_is_new(world):
    world.list = list(world.list)


def two_are_one(world):
    own, world.dict["last"] = world.dict["last"], world.list[0]
    return lambda: world.dict.update(last=own)


def a_tensor_becomes_a_parameter(world):
    world.list[0] = nn.Parameter(world.list[0].detach())


def the_optimizer_gets_a_new_one(world):
    world.optimizer.state.clear()
    world.list[0] = torch.randn(4, 4, requires_grad=True)
    world.optimizer.param_groups[0]["params"][0] = world.list[0]


PLAIN = [
    one_is_frozen,
    one_has_other_strides,
    one_is_lent,
    one_in_a_dict_is_lent,
    one_in_an_attribute_is_new,
    the_object_around_one_is_new,
    two_change_places,
    the_list_is_new,
    two_are_one,
    a_tensor_becomes_a_parameter,
    the_optimizer_gets_a_new_one,
]


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("change", PLAIN)
def test_a_parameter_that_no_module_holds_changes(change, by_hand):
    def make():
        world = Plain()
        step = world.train_by_hand if by_hand else world.train
        return changing(change, world, step, lambda index: (draw(4, 4, seed=index),))

    step = same_as_eager(make, calls=10, compiler=ReplayLog)

    assert_replays_again(step)


# --- two optimizers that share a parameter


class Shared:
    """Two layers; one optimizer has both, the other only the second."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        self.both = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.second = torch.optim.SGD(self.net[1].parameters(), lr=0.3, weight_decay=0.1)

    def train(self, x, y):
        self.both.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.both.step()
        self.second.step()
        return loss.detach()


def params(optimizer):
    return optimizer.param_groups[0]["params"]


def the_first_loses_what_is_shared(world):
    kept = params(world.both)[2:]
    del params(world.both)[2:]
    return lambda: params(world.both).extend(kept)


def the_second_gets_one_more(world):
    params(world.second).append(world.net[0].bias)
    return params(world.second).pop


def they_exchange_their_parameters(world):
    def change():
        first, second = world.both.param_groups[0], world.second.param_groups[0]
        first["params"], second["params"] = second["params"], first["params"]

    change()
    return change


def they_change_places(world):
    def change():
        world.both, world.second = world.second, world.both

    change()
    return change


def the_second_gets_a_shared_weight_that_is_new(world):
    world.net[1].weight = nn.Parameter(torch.ones(2, 4))
    params(world.second)[0] = world.net[1].weight


SHARED = [
    the_first_loses_what_is_shared,
    the_second_gets_one_more,
    they_exchange_their_parameters,
    they_change_places,
    the_second_gets_a_shared_weight_that_is_new,
]


@pytest.mark.parametrize("change", SHARED)
def test_parameters_move_between_two_optimizers(change):
    def make():
        world = Shared()
        return changing(change, world, world.train)

    step = same_as_eager(make, calls=10, compiler=ReplayLog)

    assert_replays_again(step)


# --- averages


class Averaged:
    """A model and the average of its weights, which gives the targets."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.average = torch.optim.swa_utils.AveragedModel(self.net)

    def train(self, x, y):
        self.optimizer.zero_grad()
        with torch.no_grad():
            target = self.average(x)
        loss = functional.mse_loss(self.net(x), y + target)
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.net)
        return loss.detach()


def the_average_is_another(world):
    world.average = torch.optim.swa_utils.AveragedModel(world.net)


def the_averaged_module_is_a_copy(world):
    world.average.module = copy.deepcopy(world.average.module)


def one_averaged_weight_is_new(world):
    world.average.module[0].weight = nn.Parameter(torch.ones(4, 4))


def the_average_starts_again(world):
    world.average.n_averaged.zero_()


def the_count_is_another(world):
    world.average.n_averaged = torch.tensor(7)


def the_average_is_loaded(world):
    world.average.load_state_dict({k: v + 1 for k, v in world.average.state_dict().items()})


def the_average_and_the_model_change_places(world):
    world.net, world.average.module = world.average.module, world.net


def the_average_is_taken_otherwise(world):
    world.average.avg_fn = lambda average, new, count: (average + new) / 2


AVERAGES = [
    the_average_is_another,
    the_averaged_module_is_a_copy,
    one_averaged_weight_is_new,
    the_average_starts_again,
    the_count_is_another,
    the_average_is_loaded,
    the_average_and_the_model_change_places,
    the_average_is_taken_otherwise,
]


@pytest.mark.parametrize("change", AVERAGES)
def test_an_average_is_replaced_or_edited(change):
    def make():
        world = Averaged()
        return changing(change, world, world.train)

    step = same_as_eager(make, calls=10, compiler=ReplayLog)

    assert_replays_again(step)
