"""Models, optimizers, buffers and arguments, wherever the step finds them."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as dist
from torch.distributions import Categorical
from torch.nn import functional

from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    draw,
    draw_labels,
    mlp,
    regression,
    same_as_eager,
)

WORLD: dict[str, Any] = {}


def update(net, optimizer, x, y):
    optimizer.zero_grad()
    loss = functional.mse_loss(net(x), y)
    loss.backward()
    optimizer.step()
    return loss


def test_models_are_found_in_lists_and_dicts():
    def make():
        nets = {"left": [mlp(), mlp()], "right": (mlp(),)}
        every = [*nets["left"], *nets["right"]]
        optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in every]

        def step(x, y):
            losses = [update(net, opt, x, y) for net, opt in zip(every, optimizers, strict=True)]
            return losses[0], {"others": losses[1:]}

        return Program(step, regression, watch=nets)

    assert_captured(same_as_eager(make))


def test_models_are_found_in_a_module_list_and_a_module_dict():
    def make():
        nets = nn.ModuleDict({"all": nn.ModuleList([mlp(), mlp()])})
        optimizer = torch.optim.SGD(nets.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = sum(functional.mse_loss(net(x), y) for net in nets["all"])
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_models_are_found_in_a_dataclass():
    @dataclasses.dataclass
    class State:
        net: nn.Module
        optimizer: torch.optim.Optimizer

    def make():
        net = mlp()
        state = State(net, torch.optim.SGD(net.parameters(), lr=0.1))

        def step(x, y):
            return update(state.net, state.optimizer, x, y)

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def make_globals():
    net = mlp()
    world = {"net": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1), "update": update}
    exec("def step(x, y):\n    return update(net, optimizer, x, y)\n", world)
    return Program(world["step"], regression, watch=[world["net"], world["optimizer"]])


def test_models_are_found_in_globals():
    assert_captured(same_as_eager(make_globals))


def test_models_are_passed_as_arguments():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return Program(update, lambda index: (net, optimizer, *regression(index)), watch=net)

    assert_captured_or_explained(same_as_eager(make))


def test_a_bound_method_of_a_module_is_captured():
    def make():
        class Learner(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = mlp()
                self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

            def learn(self, x, y):
                return update(self.net, self.optimizer, x, y)

        return Program(Learner().learn, regression)

    assert_captured(same_as_eager(make))


@pytest.mark.parametrize("with_options", [False, True])
def test_a_method_decorated_in_a_class_body_is_captured(with_options):
    def make(decorate):
        class Learner(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = mlp()
                self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

            @decorate
            def learn(self, x, y):
                return update(self.net, self.optimizer, x, y)

        learner = Learner()
        return Program(learner.learn, regression, watch=learner)

    options = {"keep_grads": True} if with_options else {}
    assert_captured(same_as_eager(make, decorated=True, **options))


def test_a_subclass_inherits_a_decorated_step():
    def make(decorate):
        class Base:
            def __init__(self):
                self.net = mlp()
                self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

            def loss(self, x, y):
                return functional.mse_loss(self.net(x), y)

            @decorate
            def learn(self, x, y):
                self.optimizer.zero_grad()
                loss = self.loss(x, y)
                loss.backward()
                self.optimizer.step()
                return loss

        class Robust(Base):
            def loss(self, x, y):
                return functional.l1_loss(self.net(x), y)

        learner = Robust()
        return Program(learner.learn, regression, watch=learner)

    assert_captured(same_as_eager(make, decorated=True))


def test_helper_functions_do_parts_of_the_step():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def finish(loss, *, clear):
            loss.backward()
            optimizer.step()
            if clear:
                optimizer.zero_grad()

        def step(x, y):
            loss = functional.mse_loss(net(x), y)
            finish(loss, clear=True)
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


@dataclasses.dataclass
class Batch:
    x: Tensor
    y: Tensor
    weight: float = 1.0
    mask: Tensor | None = None


def as_dataclass(index):
    return (Batch(*regression(index)),)


def as_nested_lists(index):
    x, y = regression(index)
    return ([[x, [y]], None, 3],)


def as_dict(index):
    x, y = regression(index)
    return ({"x": x, "y": {"value": y, "missing": None}, "n": 6},)


def as_keywords(index):
    x, y = regression(index)
    return {"x": x, "y": y, "scale": 2}


SHAPES = {
    "dataclass": (as_dataclass, lambda b: (b.x, b.y if b.mask is None else b.mask)),
    "nested lists": (as_nested_lists, lambda b: (b[0][0] * b[2], b[0][1][0])),
    "dict": (as_dict, lambda b: (b["x"] / b["n"], b["y"]["value"])),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_batch_may_be_nested(name):
    batch, unpack = SHAPES[name]

    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(batch):
            return update(net, optimizer, *unpack(batch))

        return Program(step, batch)

    assert_captured(same_as_eager(make))


def test_arguments_may_be_keywords_with_defaults():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y, *, scale=1, mask=None):
            return update(net, optimizer, x * scale, y if mask is None else y * mask)

        return Program(step, as_keywords)

    assert_captured(same_as_eager(make))


def test_a_float_argument_may_change_in_every_call():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y, temperature):
            return update(net, optimizer, x / temperature, y)

        return Program(step, lambda index: (*regression(index), 1.0 + index / 7))

    step = same_as_eager(make, calls=12)
    assert_captured(step)
    assert step.explain().captures <= 3


def test_an_integer_argument_may_change_in_every_call():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y, epoch):
            return update(net, optimizer, x * epoch, y)

        return Program(step, lambda index: (*regression(index), index))

    step = same_as_eager(make, calls=12)
    assert_captured(step)
    assert step.explain().captures <= 4


class Progress:
    """A plain object that a trainer counts in."""

    epoch = 0


PROGRESS = Progress()


@pytest.mark.parametrize("place", ["a global", "an attribute", "an attribute of an attribute"])
def test_a_count_that_grows_makes_no_variant_for_each_of_its_values(place):
    def make():
        world = Progress()
        world.net, world.progress = mlp(), Progress()
        optimizer = torch.optim.SGD(world.net.parameters(), lr=0.1)
        counter = {"a global": PROGRESS, "an attribute": world}.get(place, world.progress)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(world.net(x), y)
            loss.backward()
            if place == "a global":
                epoch = PROGRESS.epoch
            else:
                epoch = world.epoch if place == "an attribute" else world.progress.epoch
            if (epoch + 1) % 3:
                optimizer.step()
            return loss

        def between(index):
            counter.epoch = index // 2

        return Program(step, regression, between=between)

    step = same_as_eager(make, calls=20)

    assert_captured(step)
    assert step.explain().captures <= 3  # the first value, then one for each path


def test_optimizers_without_a_name_of_their_own_are_told_apart():
    class Box:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    def make():
        nets = [nn.Linear(4, 2), nn.Linear(4, 2)]
        boxes = [Box(torch.optim.Adam(net.parameters(), lr=0.1)) for net in nets]

        def step(x, y):
            for box in boxes:
                box.optimizer.zero_grad()
            loss = sum(functional.mse_loss(net(x), y) for net in nets)
            loss.backward()
            for box in boxes:
                box.optimizer.step()
            return loss

        return Program(step, regression)

    step = same_as_eager(make)

    assert_captured(step)
    labels = [report.label for report in step.explain().variants[0].optimizers]
    assert len(set(labels)) == 2


def test_two_parameter_groups_have_their_own_options():
    def make():
        net = mlp()
        groups = [
            {"params": [net[0].weight, net[2].weight], "weight_decay": 0.1},
            {"params": [net[0].bias, net[2].bias], "lr": 0.01, "name": "biases"},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)

        def step(x, y):
            return update(net, optimizer, x, y)

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def averaged_by_hand(net):
    shadow = [p.detach().clone() for p in net.parameters()]

    def average():
        with torch.no_grad():
            for s, p in zip(shadow, net.parameters(), strict=True):
                s.mul_(0.9).add_(p, alpha=0.1)

    return shadow, average


def averaged_by_lerp(net):
    shadow = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def average():
        for s, p in zip(shadow.parameters(), net.parameters(), strict=True):
            s.lerp_(p, 0.1)

    return shadow, average


def averaged_through_data(net):
    shadow = copy.deepcopy(net).requires_grad_(False)

    def average():
        for s, p in zip(shadow.parameters(), net.parameters(), strict=True):
            s.data.copy_(0.9 * s.data + 0.1 * p.data)

    return shadow, average


@pytest.mark.parametrize("kind", [averaged_by_hand, averaged_by_lerp])
def test_an_average_of_the_weights_kept_by_hand_is_captured(kind):
    assert_captured(same_as_eager(averaging(kind)))


def test_an_average_kept_through_data_is_exact():
    assert_captured_or_explained(same_as_eager(averaging(averaged_through_data)))


def averaging(kind):
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        shadow, average = kind(net)

        def step(x, y):
            loss = update(net, optimizer, x, y)
            average()
            return loss

        return Program(step, regression, watch=shadow)

    return make


@pytest.mark.parametrize("options", [{}, {"use_buffers": True}, {"decay": 0.9}])
def test_an_averaged_model_is_captured(options):
    def make():
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        arguments = dict(options)
        if "decay" in arguments:
            decay = arguments.pop("decay")
            arguments["multi_avg_fn"] = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        average = torch.optim.swa_utils.AveragedModel(net, **arguments)

        def step(x, y):
            loss = update(net, optimizer, x, y)
            average.update_parameters(net)
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_a_target_network_follows_and_gives_targets():
    def make():
        net, target = mlp(), mlp().requires_grad_(False)
        target.load_state_dict(net.state_dict())
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

        def step(x, y):
            with torch.no_grad():
                goal = y + 0.9 * target(x.flip(0))
            loss = update(net, optimizer, x, goal)
            with torch.no_grad():
                for t, p in zip(target.parameters(), net.parameters(), strict=True):
                    t.mul_(0.95).add_(p, alpha=0.05)
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def test_a_target_network_is_copied_every_third_call():
    def make():
        net, target = mlp(), mlp().requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y, index):
            with torch.no_grad():
                goal = y + target(x)
            loss = update(net, optimizer, x, goal)
            if index % 3 == 0:
                with torch.no_grad():
                    for t, p in zip(target.parameters(), net.parameters(), strict=True):
                        t.copy_(p)
            return loss

        return Program(step, lambda index: (*regression(index), index))

    assert_captured(same_as_eager(make, calls=12))


class Queue(nn.Module):
    """MoCo's queue of keys: a buffer written in place, with a pointer that is a buffer too."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.register_buffer("keys", functional.normalize(torch.randn(12, 3), dim=1))
        self.register_buffer("position", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        return functional.normalize(self.net(x), dim=1) @ self.keys.clone().t()

    @torch.no_grad()
    def enqueue(self, keys):
        where = (self.position + torch.arange(len(keys))) % len(self.keys)
        self.keys[where] = keys
        self.position.copy_((self.position + len(keys)) % len(self.keys))


def test_a_queue_is_written_in_place():
    def make():
        net = Queue()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            net.enqueue(functional.normalize(net.net(x), dim=1).detach())
            return loss

        def batch(index):
            return draw(4, 4, seed=index), draw_labels(4, below=12, seed=index)

        return Program(step, batch)

    assert_captured(same_as_eager(make))


def test_a_buffer_is_rebound_by_assignment():
    def make():
        net = mlp()
        net.register_buffer("mean", torch.zeros(2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            loss = update(net, optimizer, x, y + net.mean)
            net.mean = 0.9 * net.mean + 0.1 * y.mean(0)
            return loss

        return Program(step, regression)

    assert_captured_or_explained(same_as_eager(make))


def drawn_noise(x):
    return x + 0.1 * torch.randn_like(x)


def drawn_everything(x):
    keep = torch.bernoulli(torch.full_like(x, 0.5))
    order = torch.randperm(len(x))
    return x[order] * keep + torch.rand(()) + torch.empty_like(x).normal_(0, 0.1)


def drawn_from_distributions(x):
    normal = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    chosen = torch.distributions.Categorical(logits=x).sample()
    return x + normal.rsample((len(x),)) * functional.one_hot(chosen, 4)


def by_the_modules_own_name(scores):
    return torch.distributions.Categorical(logits=scores)


def by_another_name_of_the_module(scores):
    return dist.Categorical(logits=scores)


def by_the_class(scores):
    return Categorical(logits=scores)


@pytest.mark.parametrize(
    "chances", [by_the_modules_own_name, by_another_name_of_the_module, by_the_class]
)
def test_a_policy_gradient_is_captured_however_its_distribution_is_imported(chances):
    def make():
        net, optimizer = policy()

        def step(x, y):
            optimizer.zero_grad()
            choices = chances(net(x))
            action = choices.sample()
            loss = -(choices.log_prob(action) * y[:, 0] + 0.01 * choices.entropy()).mean()
            loss.backward()
            optimizer.step()
            return loss, action

        return Program(step, regression)

    assert_captured(same_as_eager(make))


def policy():
    net = mlp()
    return net, torch.optim.Adam(net.parameters())


@pytest.mark.parametrize("noise", [drawn_noise, drawn_everything, drawn_from_distributions])
@pytest.mark.parametrize("seeded", [False, True])
def test_random_numbers_of_the_step_are_those_of_eager(noise, seeded):
    def make():
        net = nn.Sequential(*mlp(), nn.Dropout(0.3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            return update(net, optimizer, noise(x), y)

        def between(index):
            if seeded:
                torch.manual_seed(index // 2)
            torch.rand(3)

        return Program(step, regression, between=between)

    assert_captured(same_as_eager(make))
