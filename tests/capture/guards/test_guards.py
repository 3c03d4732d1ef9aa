"""What changes between the calls is seen by the next one.

Hooks, modes around a call and replaced objects are in test_fallbacks.py, training modes and
shapes in compiler/test_variants.py; here are flags, identities and aliases.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import Program, assert_captured, mlp, regression, same_as_eager

CHANGED = 3


class World:
    """A model with two layers that may be tied, and its optimizer."""

    def __init__(self):
        self.net = mlp(inputs=4, hidden=4, outputs=2)
        self.twin = nn.Linear(4, 4)
        self.optimizer = torch.optim.SGD(
            [*self.net.parameters(), *self.twin.parameters()], lr=0.1, momentum=0.9
        )

    def train(self, x, y):
        self.optimizer.zero_grad()
        loss = functional.mse_loss(self.net(self.twin(x)), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def freezes_a_layer(world):
    world.twin.requires_grad_(False)


def freezes_one_bias(world):
    world.net[0].bias.requires_grad = False


def ties_two_weights(world):
    world.twin.weight = world.net[0].weight


def lets_two_weights_share_memory(world):
    world.twin.weight.data = world.net[0].weight.data


def replaces_a_parameter_out_of_the_optimizers_reach(world):
    world.net[2].bias = nn.Parameter(torch.ones(2))


def replaces_a_parameter_by_a_frozen_one(world):
    world.net[2].bias = nn.Parameter(torch.ones(2), requires_grad=False)


def sets_the_data_of_a_parameter(world):
    world.net[0].weight.data = torch.ones(4, 4)


def sets_data_with_other_strides(world):
    world.net[0].weight.data = torch.randn(4, 4).t()


def loads_other_weights(world):
    world.net.load_state_dict({k: v + 1 for k, v in world.net.state_dict().items()})


def loads_by_assignment(world):
    state = {k: v + 1 for k, v in world.net.state_dict().items()}
    world.net.load_state_dict(state, assign=True)


def swaps_an_activation(world):
    world.net[1] = nn.ReLU()


def swaps_the_order_of_parameters(world):
    world.optimizer.param_groups[0]["params"].reverse()


def takes_a_parameter_out_of_the_optimizer(world):
    world.optimizer.state.pop(world.optimizer.param_groups[0]["params"].pop())


def forgets_the_state_of_the_optimizer(world):
    world.optimizer.state.clear()


def gives_a_gradient(world):
    world.net[0].weight.grad = torch.ones(4, 4)


CHANGES = [
    freezes_a_layer,
    freezes_one_bias,
    ties_two_weights,
    lets_two_weights_share_memory,
    replaces_a_parameter_out_of_the_optimizers_reach,
    replaces_a_parameter_by_a_frozen_one,
    sets_the_data_of_a_parameter,
    sets_data_with_other_strides,
    loads_other_weights,
    loads_by_assignment,
    swaps_an_activation,
    swaps_the_order_of_parameters,
    takes_a_parameter_out_of_the_optimizer,
    forgets_the_state_of_the_optimizer,
    gives_a_gradient,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_the_calls_is_seen(change):
    def make():
        world = World()

        def between(index):
            if index == CHANGED:
                change(world)

        return Program(world.train, regression, watch=world, between=between)

    step = same_as_eager(make, calls=6)

    assert step.explain().captured


def test_a_change_that_is_undone_finds_the_first_variant_again():
    def make():
        world = World()

        def between(index):
            world.twin.requires_grad_(index not in {3, 4, 5})

        return Program(world.train, regression, watch=world, between=between)

    step = same_as_eager(make, calls=10)

    assert_captured(step)
    assert step.explain().captures <= 3
