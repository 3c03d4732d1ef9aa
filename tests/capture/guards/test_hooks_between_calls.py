"""Hooks that come and go while a step replays: each is called, and replay resumes after it."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from support.harness import Program, draw, mlp, regression, same_as_eager
from support.replay_log import ReplayLog, calls_in_turn, in_turn, missed_in_turn

REGISTERED, REMOVED = 4, 6


def triple(gradient):
    return gradient * 3


def double_in_place(parameter):
    parameter.grad.mul_(2)


def doubled(module, args, out):
    return out * 2


class World:
    """A student, a teacher in no optimizer, and their likes with hooks, made ahead."""

    def __init__(self):
        self.net, self.teacher, self.spare = mlp(), nn.Linear(4, 2), nn.Linear(4, 5)
        self.teacher.requires_grad_(False)
        self.optimizer, self.idle = (
            torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9) for _ in range(2)
        )
        self.seen = []
        self.layer_with_hook = nn.Linear(4, 5)
        self.layer_with_hook._parameters = self.net[0]._parameters
        self.layer_with_hook.register_forward_hook(doubled)
        self.weight_with_hook = nn.Parameter(torch.randn(5, 4))
        self.weight_with_hook.register_hook(triple)
        self.weight_with_post_hook = nn.Parameter(torch.randn(5, 4))
        self.weight_with_post_hook.register_post_accumulate_grad_hook(double_in_place)
        self.optimizer_with_hook = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.optimizer_with_hook.register_step_post_hook(self.notes)

    def notes(self, *_):
        self.seen.append(len(self.seen))

    def notes_own(self, optimizer, *_):
        if optimizer is self.optimizer:
            self.notes()

    def loss(self, x, y):
        out = self.net(x)
        return functional.mse_loss(out, y) + functional.mse_loss(out, self.teacher(x))

    def train(self, x, y, scale=1):
        self.optimizer.zero_grad()
        loss = self.loss(x, y) * scale
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@pytest.fixture(autouse=True)
def _no_global_hooks():
    yield
    modules._global_forward_hooks.clear()
    modules._global_forward_hooks_always_called.clear()
    modules._global_backward_hooks.clear()
    modules._global_is_full_backward_hook = None
    modules._global_parameter_registration_hooks.clear()
    optimizers._global_optimizer_pre_hooks.clear()
    optimizers._global_optimizer_post_hooks.clear()


def hooking(*registers):
    """A program that registers a hook and removes it two calls later, one after the other."""

    def make():
        world = World()
        watch = [world.net, world.seen]
        return Program(world.train, regression, watch=watch, between=in_turn(registers, world))

    return make


def same_with_hooks(registers):
    """Compare a step with eager while each hook comes and goes."""
    calls = calls_in_turn(registers)
    return same_as_eager(hooking(*registers.values()), calls=calls, compiler=ReplayLog)


@pytest.fixture
def _no_limits(monkeypatch):
    """Let every hook be captured or refused, although one step meets them all."""
    monkeypatch.setenv("STEPGRAPH_MAX_CAPTURE_FAILURES", "100")
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "100")


FELT = {
    "on a parameter": lambda w: w.net[0].weight.register_hook(triple).remove,
    "after an accumulation": lambda w: (
        w.net[2].bias.register_post_accumulate_grad_hook(double_in_place).remove
    ),
    "on all parameters at once": lambda w: (
        register_multi_grad_hook(list(w.net.parameters()), w.notes).remove
    ),
    "after a forward": lambda w: w.net[0].register_forward_hook(doubled).remove,
    "after a teacher's forward": lambda w: w.teacher.register_forward_hook(doubled).remove,
    "before a backward": lambda w: (
        w.net[2].register_full_backward_pre_hook(lambda module, out: (out[0] * 2,)).remove
    ),
    "before a step": lambda w: w.optimizer.register_step_pre_hook(w.notes).remove,
    "after a step": lambda w: w.optimizer.register_step_post_hook(w.notes).remove,
    "before every step": lambda w: optimizers.register_optimizer_step_pre_hook(w.notes_own).remove,
    "after every step": lambda w: optimizers.register_optimizer_step_post_hook(w.notes_own).remove,
    "after every forward": lambda w: (
        modules.register_module_forward_hook(
            lambda module, args, out: out * 2 if module is w.net[0] else None
        ).remove
    ),
}


@pytest.mark.usefixtures("_no_limits")
def test_a_hook_is_called_while_it_is_there_and_the_step_replays_when_it_is_gone():
    step = same_with_hooks(FELT)

    assert not missed_in_turn(step, list(FELT), [2, 3])


BY_HAND = {
    "before an accumulation": lambda leaf: leaf.register_hook(triple),
    "after an accumulation": lambda leaf: leaf.register_post_accumulate_grad_hook(double_in_place),
}


@pytest.mark.parametrize("where", BY_HAND)
def test_a_hook_on_a_leaf_that_is_updated_by_hand_is_called(where):
    def make():
        leaf = torch.ones(4, 3, requires_grad=True)

        def step(x, y):
            leaf.grad = None
            loss = (x @ leaf).square().mean() + y.mean()
            loss.backward()
            with torch.no_grad():
                leaf.sub_(leaf.grad, alpha=0.1)
            return loss.detach()

        def between(index):
            if index == REGISTERED:
                BY_HAND[where](leaf)

        return Program(step, regression, watch=[leaf], between=between)

    step = same_as_eager(make, calls=9, compiler=ReplayLog)

    assert step.replayed[2:REGISTERED] == [True] * 2


UNFELT = {
    "on a parameter of another layer": lambda w: w.spare.weight.register_hook(triple).remove,
    "on another layer": lambda w: w.spare.register_forward_hook(doubled).remove,
    "on another optimizer": lambda w: w.idle.register_step_post_hook(w.notes).remove,
    "on a state_dict": lambda w: w.net.register_state_dict_post_hook(lambda *args: None).remove,
    "on loading an optimizer": lambda w: (
        w.optimizer.register_load_state_dict_post_hook(w.notes).remove
    ),
    "on parameters of new modules": lambda w: (
        modules.register_module_parameter_registration_hook(lambda *args: None).remove
    ),
    "on a result": lambda w: (torch.ones(2, requires_grad=True) * 2).register_hook(triple).remove,
}


def test_a_hook_that_the_step_does_not_reach_stops_no_replay():
    step = same_with_hooks(UNFELT)

    assert not missed_in_turn(step, list(UNFELT), range(4))


def exchange(*path):
    """A change that puts what has a hook in the place of what has none; calling it undoes it."""
    owner_of, name, other = path

    def change(world):
        def swap():
            owner = owner_of(world)
            inside = getattr(owner, name)
            setattr(owner, name, getattr(world, other))
            setattr(world, other, inside)

        swap()
        return swap

    return change


MADE_AHEAD = {
    "a layer": exchange(lambda w: w.net, "0", "layer_with_hook"),
    "a weight": exchange(lambda w: w.net[0], "weight", "weight_with_hook"),
    "a weight with a later hook": exchange(lambda w: w.net[0], "weight", "weight_with_post_hook"),
    "an optimizer": exchange(lambda w: w, "optimizer", "optimizer_with_hook"),
    "the hooks of a layer": lambda w: (
        w.net[0]._forward_hooks.update(w.layer_with_hook._forward_hooks)
        or w.net[0]._forward_hooks.clear
    ),
}


@pytest.mark.usefixtures("_no_limits")
def test_what_has_its_hook_from_before_the_capture_is_put_in_later():
    step = same_with_hooks(MADE_AHEAD)

    assert not missed_in_turn(step, list(MADE_AHEAD), [2, 3])


def test_of_two_hooks_one_is_left():
    def two(world):
        handles = [world.net[0].weight.register_hook(triple) for _ in range(2)]
        return handles[0].remove

    step = same_as_eager(hooking(two), calls=8, compiler=ReplayLog)

    assert step.replayed[2:] == [True] * 2 + [False] * 4


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("where", ["on a parameter", "after a forward", "after a step"])
def test_a_hook_is_seen_by_each_of_two_variants(where, first):
    def make():
        world, removals = World(), []

        def between(index):
            if index == 7:
                removals.append(FELT[where](world))
            if index == 10:
                removals.pop()()

        def batch(index):
            return (*regression(index), 1 + (index + first) % 2)

        def step(x, y, scale):
            return world.train(x, y) if scale == 1 else world.train(x, y, 2)

        return Program(step, batch, watch=[world.net, world.seen], between=between)

    step = same_as_eager(make, calls=14, compiler=ReplayLog)

    assert step.replayed[5:7] == [True] * 2
    assert step.replayed[10:] == [True] * 4


@pytest.mark.parametrize("where", ["on a parameter", "after an accumulation", "after a forward"])
def test_a_hook_is_seen_by_each_of_two_steps_that_share_a_model(where):
    def run(compiler):
        torch.manual_seed(0)
        world = World()
        steps = compiler(world.train), compiler(lambda x, y: world.train(x, y, 2))
        for index in range(12):
            if index == 5:
                remove = FELT[where](world)
            if index == 8:
                remove()
            for step in steps:
                step(*regression(index))
        return [p.detach() for p in world.net.parameters()], steps

    expected, _ = run(lambda step: step)
    found, steps = run(lambda step: ReplayLog(step, on_fallback="silent"))

    assert all(map(torch.equal, expected, found))
    assert all(step.replayed[8:] == [True] * 4 for step in steps)


@pytest.mark.parametrize("made_ahead", [False, True])
def test_a_batch_with_a_hook_comes_after_batches_without(made_ahead):
    def make():
        world = World()

        def one(index):
            x = draw(6, 4, seed=index).requires_grad_()
            if index in (4, 6):
                x.register_hook(triple)
            return x

        ahead = [one(index) for index in range(9)] if made_ahead else []

        def step(x):
            world.train(x, torch.zeros(6, 2))
            return x.grad

        return Program(step, lambda index: ((ahead[index] if ahead else one(index)),), watch=world)

    step = same_as_eager(make, calls=9, compiler=ReplayLog)

    assert [step.replayed[index] for index in (2, 3, 5, 7, 8)] == [True] * 5


@pytest.mark.parametrize("made_ahead", [False, True])
def test_a_tensor_that_no_optimizer_has_gets_a_hook(made_ahead):
    def make():
        weights = [torch.randn(4, 2, requires_grad=True) for _ in range(2)]
        removals = []
        if made_ahead:
            weights[1].register_hook(triple)

        def step(x, y):
            weights[0].grad = None
            loss = functional.mse_loss(x @ weights[0], y)
            loss.backward()
            with torch.no_grad():
                weights[0].sub_(weights[0].grad, alpha=0.1)
            return loss.detach()

        def between(index):
            if index in (REGISTERED, REMOVED) and made_ahead:
                weights.reverse()
            elif index == REGISTERED:
                removals.append(weights[0].register_hook(triple))
            elif index == REMOVED:
                removals.pop().remove()

        return Program(step, regression, watch=weights, between=between)

    step = same_as_eager(make, calls=9, compiler=ReplayLog)

    assert step.replayed[2:REGISTERED] == [True] * 2
    assert step.replayed[REMOVED:] == [True] * 3
