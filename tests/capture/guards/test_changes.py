"""Parameters, modules, optimizers and batches that change while a step replays.

A change is made at one call and, where it returns how, undone at a later one. More
replacements are in test_guards.py and test_fallbacks.py; here each must also replay again.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import Program, regression, same_as_eager
from support.replay_log import (
    ReplayLog,
    assert_replays_again,
    between,
    calls_in_turn,
    in_turn,
    missed_in_turn,
)


class Layer(nn.Module):
    """A linear layer of any dtype, whose bias may be missing."""

    def __init__(self, outputs=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 4) / 2)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        out = x.to(self.weight.dtype) @ self.weight.t()
        return out if self.bias is None else out + self.bias.to(out.dtype)


class World:
    """A student with an optimizer, a teacher in none, and a layer of no use yet."""

    def __init__(self):
        self.net = nn.Sequential(Layer(), nn.Tanh(), Layer(), Layer(2))
        self.teacher = Layer(2).requires_grad_(False)
        self.spare = Layer()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.kept = []

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def train(self, x, y):
        self.optimizer.zero_grad()
        out = self.net(x).float()
        loss = functional.mse_loss(out, y) + functional.mse_loss(out, self.teacher(x).float())
        loss = loss + 0.01 * sum(p.square().sum().float() for p in self.net.parameters())
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            return loss.detach(), self.net(x), self.teacher(x)


def changing(change):
    """A program in which one thing changes, and maybe changes back."""

    def make():
        world = World()
        watch = [world.net, world.kept]
        return Program(world.train, regression, watch=watch, between=between(change, world))

    return make


# --- parameters that stay the same objects


def one_weight_is_frozen(world):
    world.net[2].weight.requires_grad_(False)
    return lambda: world.net[2].weight.requires_grad_(True)


def a_frozen_weight_keeps_no_gradient(world):
    world.net[2].weight.requires_grad_(False).grad = None
    return lambda: world.net[2].weight.requires_grad_(True)


def one_weight_is_double(world):
    world.net[0].weight.data = world.net[0].weight.data.double()

    def back():
        world.net[0].weight.data = world.net[0].weight.data.float()

    return back


def one_bias_is_of_half_precision(world):
    world.net[3].bias.data = world.net[3].bias.data.bfloat16()


def the_model_is_double(world):
    world.net.to(torch.float64)
    return lambda: world.net.to(torch.float32)


def the_hidden_layer_is_wider(world):
    world.optimizer.state.clear()
    world.net[0].weight.data, world.net[0].bias.data = torch.randn(6, 4), torch.randn(6)
    world.net[2].weight.data = torch.randn(4, 6)


def a_bias_is_one_number(world):
    world.optimizer.state.clear()
    world.net[0].bias.data = torch.tensor(0.5)


def a_weight_lies_in_every_other_column(world):
    world.net[0].weight.data = torch.randn(4, 8)[:, ::2]


def biases_change_places(world):
    first, second = world.net[0], world.net[2]
    first.bias, second.bias = second.bias, first.bias


def weights_are_tied(world):
    own = world.net[2].weight
    world.kept.append(own)
    world.net[2].weight = world.net[0].weight
    return lambda: setattr(world.net[2], "weight", own)


def a_bias_is_none(world):
    world.net[2].bias = None


def a_bias_becomes_a_buffer(world):
    bias = world.net[2].bias.detach()
    del world.net[2].bias
    world.net[2].register_buffer("bias", bias)


def a_bias_becomes_a_plain_attribute(world):
    bias = world.net[2].bias
    del world.net[2].bias
    world.net[2].__dict__["bias"] = bias


# --- tables of parameters


def one_more_parameter(world):
    world.net[2].register_parameter("extra", nn.Parameter(torch.randn(3)))
    return lambda: delattr(world.net[2], "extra")


def a_table_is_reordered(world):
    table = world.net[2]._parameters
    table["weight"] = table.pop("weight")


def a_table_is_replaced_by_an_equal_one_and_then_changed(world):
    world.net[2]._parameters = dict(world.net[2]._parameters)
    return lambda: setattr(world.net[2], "bias", nn.Parameter(torch.ones(4)))


# --- modules


def a_layer_is_new_and_in_a_group_of_its_own(world):
    world.net[2] = Layer()
    world.optimizer.add_param_group({"params": list(world.net[2].parameters())})


def a_layer_is_new_and_in_the_place_of_the_old_in_the_group(world):
    world.net[2] = Layer()
    world.optimizer.state.clear()
    world.group["params"][2:4] = list(world.net[2].parameters())


def a_layer_is_lent(world):
    own, world.net[2] = world.net[2], world.spare
    world.kept.append(own)
    return lambda: world.net.__setitem__(2, own)


def layers_change_places(world):
    world.net[0], world.net[2] = world.net[2], world.net[0]


def the_table_of_layers_is_replaced(world):
    layers = list(world.net)
    world.net._modules = dict(
        zip("0123", [layers[2], layers[1], layers[0], layers[3]], strict=True)
    )


def the_model_is_a_deep_copy(world):
    world.kept.append(world.net)
    world.net = copy.deepcopy(world.net)


def the_model_is_another_with_the_same_parameters(world):
    other = nn.Sequential(Layer(), nn.Sigmoid(), Layer(), Layer(2))
    for place in (0, 2, 3):
        other[place].weight, other[place].bias = world.net[place].weight, world.net[place].bias
    world.net = other


def weights_are_assigned_and_given_to_the_optimizer(world):
    world.optimizer.state.clear()
    state = {name: value + 1 for name, value in world.net.state_dict().items()}
    world.net.load_state_dict(state, assign=True)
    world.group["params"] = list(world.net.parameters())


# --- a teacher, whose parameters are in no optimizer


def the_teachers_weight_is_the_students(world):
    own, world.net[3].weight = world.net[3].weight, world.teacher.weight
    world.kept.append(own)
    return lambda: setattr(world.net[3], "weight", own)


def the_teachers_weight_is_trained(world):
    own, world.net[3].weight = world.net[3].weight, world.teacher.weight.requires_grad_()
    world.kept.append(own)
    world.optimizer.add_param_group({"params": [world.teacher.weight]})
    return lambda: setattr(world.net[3], "weight", own)


def teacher_and_student_change_places(world):
    def change():
        world.teacher, world.net[3] = world.net[3], world.teacher

    change()
    return change


def the_teacher_reads_the_students_weight(world):
    own, world.teacher.weight = world.teacher.weight, world.net[3].weight
    world.kept.append(own)
    return lambda: setattr(world.teacher, "weight", own)


def the_teacher_is_thawed(world):
    world.teacher.requires_grad_()


def the_teacher_is_double(world):
    world.teacher.double()


# --- optimizers


def a_stranger_takes_a_place_in_the_group(world):
    world.optimizer.state.clear()
    world.group["params"][2] = nn.Parameter(torch.randn(4, 4))


def a_frozen_parameter_joins_the_group(world):
    world.group["params"].append(world.teacher.weight)
    world.kept.append(world.teacher)
    return lambda: world.teacher.requires_grad_()


def a_list_of_parameters_is_replaced_by_an_equal_one_and_then_changed(world):
    world.group["params"] = list(world.group["params"])
    return lambda: world.optimizer.state.pop(world.group["params"].pop())


def the_last_parameter_gets_a_group_of_its_own(world):
    last = world.group["params"].pop()
    world.optimizer.param_groups.append({**world.group, "params": [last], "lr": 0.5})


def the_optimizer_is_a_deep_copy(world):
    world.optimizer = copy.deepcopy(world.optimizer)


SEEN = [
    one_weight_is_frozen,
    a_frozen_weight_keeps_no_gradient,
    one_weight_is_double,
    one_bias_is_of_half_precision,
    the_model_is_double,
    the_hidden_layer_is_wider,
    a_bias_is_one_number,
    a_weight_lies_in_every_other_column,
    biases_change_places,
    weights_are_tied,
    a_bias_is_none,
    a_bias_becomes_a_buffer,
    a_bias_becomes_a_plain_attribute,
    one_more_parameter,
    a_table_is_reordered,
    a_table_is_replaced_by_an_equal_one_and_then_changed,
    a_layer_is_new_and_in_a_group_of_its_own,
    a_layer_is_new_and_in_the_place_of_the_old_in_the_group,
    a_layer_is_lent,
    layers_change_places,
    the_table_of_layers_is_replaced,
    the_model_is_a_deep_copy,
    the_model_is_another_with_the_same_parameters,
    weights_are_assigned_and_given_to_the_optimizer,
    the_teachers_weight_is_the_students,
    the_teachers_weight_is_trained,
    teacher_and_student_change_places,
    the_teacher_reads_the_students_weight,
    the_teacher_is_thawed,
    the_teacher_is_double,
    a_stranger_takes_a_place_in_the_group,
    a_frozen_parameter_joins_the_group,
    a_list_of_parameters_is_replaced_by_an_equal_one_and_then_changed,
    the_last_parameter_gets_a_group_of_its_own,
    the_optimizer_is_a_deep_copy,
]


@pytest.mark.parametrize("change", SEEN)
def test_a_change_is_followed_and_the_step_replays_again(change):
    step = same_as_eager(changing(change), calls=10, compiler=ReplayLog)

    assert_replays_again(step)


# --- changes that no replay depends on


def the_model_is_a_shallow_copy(world):
    world.net = copy.copy(world.net)


def a_table_that_a_module_no_longer_has_is_changed(world):
    table = world.net[2]._parameters
    world.net[2]._parameters = dict(table)
    world.kept.append(table)
    return lambda: table.update(bias=nn.Parameter(torch.ones(4)))


def the_teacher_has_other_weights(world):
    world.teacher.weight.data = torch.ones(2, 4)


def the_teacher_shares_the_students_memory(world):
    world.teacher.weight.data = world.net[3].weight.data


def two_weights_overlap(world):
    rows = torch.randn(6, 4)
    world.net[0].weight.data, world.net[2].weight.data = rows[:4], rows[2:]


def a_weight_is_set_to_another_memory(world):
    with torch.no_grad():
        world.net[0].weight.set_(torch.ones(4, 4))


def a_layer_of_no_use_changes(world):
    world.spare.weight = nn.Parameter(torch.ones(4, 4))


def a_group_is_replaced_by_an_equal_one(world):
    world.optimizer.param_groups[0] = dict(world.group)


def a_schedule_is_created(world):
    schedule = torch.optim.lr_scheduler.ExponentialLR(world.optimizer, gamma=0.5)
    return lambda: schedule.step()


def the_optimizer_is_loaded(world):
    world.optimizer.load_state_dict(copy.deepcopy(world.optimizer.state_dict()))


GOES_ON = [
    the_model_is_a_shallow_copy,
    a_table_that_a_module_no_longer_has_is_changed,
    the_teacher_has_other_weights,
    the_teacher_shares_the_students_memory,
    two_weights_overlap,
    a_weight_is_set_to_another_memory,
    a_layer_of_no_use_changes,
    a_group_is_replaced_by_an_equal_one,
    a_schedule_is_created,
    the_optimizer_is_loaded,
]


def test_a_change_that_no_replay_depends_on_is_exact_without_another_capture():
    def make():
        world = World()
        watch = [world.net, world.kept]
        return Program(world.train, regression, watch=watch, between=in_turn(GOES_ON, world))

    step = same_as_eager(make, calls=calls_in_turn(GOES_ON), compiler=ReplayLog)

    assert not missed_in_turn(step, [change.__name__ for change in GOES_ON], range(4))
    assert step.explain().captures == 1
