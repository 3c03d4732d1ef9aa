"""What a step notes for its user: numbers, containers, attributes, prints."""

from collections import defaultdict, deque

import pytest
import torch
from torch.nn import functional

from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    mlp,
    regression,
    same_as_eager,
)


class World:
    """A model that trains, and all the places where a user keeps what was seen."""

    def __init__(self):
        self.net = mlp()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.losses, self.recent, self.named = [], deque(maxlen=3), {}
        self.lists, self.by_name = {"loss": [], "lr": []}, defaultdict(list)
        self.loss = self.best = None

    def train(self, x, y):
        self.optimizer.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        return loss


def program(note):
    """A program that trains and then notes something: `note(world, loss)`."""

    def make():
        world = World()

        def step(x, y):
            return note(world, world.train(x, y))

        return Program(step, regression, watch=world)

    return make


def appends_to_a_list(world, loss):
    world.losses.append(loss.detach())


def appends_to_a_bounded_deque(world, loss):
    world.recent.append(loss.detach())


def appends_to_a_list_in_a_dict(world, loss):
    world.lists["loss"].append(loss.detach())


def appends_twice(world, loss):
    world.losses.append(loss.detach())
    world.losses.append(loss.detach() * 2)


def appends_weights_that_change_later(world, loss):
    world.losses.append(world.net[0].bias.detach())


def sets_a_key(world, loss):
    world.named["loss"] = loss.detach()


def sets_an_attribute(world, loss):
    world.loss = loss.detach()


def sets_an_attribute_with_a_spent_graph(world, loss):
    world.loss = loss


def sets_an_attribute_of_the_model(world, loss):
    world.net.last_loss = loss.detach()


@pytest.mark.parametrize(
    "note",
    [
        appends_to_a_list,
        appends_to_a_list_in_a_dict,
        appends_twice,
        appends_weights_that_change_later,
        sets_a_key,
        sets_an_attribute,
        sets_an_attribute_with_a_spent_graph,
    ],
)
def test_a_tensor_that_is_kept_is_kept_by_a_captured_step(note):
    assert_captured(same_as_eager(program(note), calls=5))


def extends_a_list(world, loss):
    world.losses.extend([loss.detach(), loss.detach() + 1])


def adds_in_place_to_a_list(world, loss):
    world.losses += [loss.detach()]


def inserts_at_the_front(world, loss):
    world.losses.insert(0, loss.detach())


def appends_to_a_default_dict(world, loss):
    world.by_name["loss"].append(loss.detach())


def updates_a_dict(world, loss):
    world.named.update(loss=loss.detach(), twice=loss.detach() * 2)


def deletes_a_key(world, loss):
    world.named["loss"] = loss.detach()
    del world.named["loss"]


def keeps_the_best(world, loss):
    value = loss.detach()
    world.best = value if world.best is None else torch.minimum(world.best, value)


def appends_a_number(world, loss):
    world.losses.append(loss.item())


def sets_a_key_to_a_number(world, loss):
    world.named["loss"] = loss.item()


def sets_an_attribute_to_a_number(world, loss):
    world.loss = loss.item()


def returns_a_number(world, loss):
    return loss.item()


def returns_what_was_made_of_a_number(world, loss):
    return round(loss.item() * 100, 2)


def returns_a_list_of_numbers(world, loss):
    return world.net[0].bias.tolist()


def formats_a_number(world, loss):
    return f"loss {loss.item():.4f}"


def prints_a_number(world, loss):
    print("loss", loss.item())  # noqa: T201 - the harness watches it


def prints_a_tensor(world, loss):
    print(loss.detach())  # noqa: T201


def prints_words(world, loss):
    print("a step")  # noqa: T201


def appends_before_the_schedule_and_after(world, loss):
    world.lists["lr"].append(world.schedule.get_last_lr()[0])
    world.schedule.step()
    world.lists["lr"].append(world.schedule.get_last_lr()[0])


@pytest.mark.parametrize(
    "note",
    [
        appends_to_a_bounded_deque,
        sets_an_attribute_of_the_model,
        extends_a_list,
        adds_in_place_to_a_list,
        inserts_at_the_front,
        appends_to_a_default_dict,
        updates_a_dict,
        deletes_a_key,
        keeps_the_best,
        appends_a_number,
        sets_a_key_to_a_number,
        sets_an_attribute_to_a_number,
        returns_a_number,
        returns_what_was_made_of_a_number,
        returns_a_list_of_numbers,
        formats_a_number,
        prints_a_number,
        prints_a_tensor,
        prints_words,
        appends_before_the_schedule_and_after,
    ],
)
def test_whatever_is_noted_is_exact(note):
    assert_captured_or_explained(same_as_eager(program(note), calls=4))


def test_what_the_user_clears_or_replaces_between_the_calls_takes_the_next_notes():
    def make():
        world = World()

        def step(x, y):
            loss = world.train(x, y).detach()
            world.losses.append(loss)
            world.named["loss"] = loss

        def between(index):
            if index == 3:
                world.losses.clear()
            if index == 5:
                world.losses, world.named = [], {"other": 1}

        return Program(step, regression, watch=world, between=between)

    assert_captured(same_as_eager(make))
