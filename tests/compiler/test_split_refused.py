"""microbatches=n: what would mean something else for the parts of a batch is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as in the drawn programs

import stepgraph
from stepgraph import Microbatches
from stepgraph.errors import CaptureError, ConfigurationError
from support.harness import assert_captured, regression, same_as_eager
from support.split_by_hand import PAIRS, World, beside, plain_with_closure, sized


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def once(*, loss=None, before=None, after=None, result=None):
    """A plain step with one thing in it that is no matter of the parts."""

    def step(world, x, y):
        world.optimizer.zero_grad()
        value = (loss or World.loss)(world, x, y)
        if before is not None:
            before(world, x, y)
        value.backward()
        world.optimizer.step()
        if after is not None:
            after(world, value)
        return value if result is None else result(world, x, value)

    return step


def changing_gradients(world, x, y):
    world.optimizer.zero_grad()
    world.loss(x, y).backward()
    for p in world.net.parameters():
        p.grad.mul_(0.5)
    world.optimizer.step()


def clipping_behind_the_back(world, x, y):
    world.optimizer.zero_grad()
    world.loss(x, y).backward()
    nn.utils.clip_grads_with_norm_(world.net.parameters(), 1.0, torch.ones(()))
    world.optimizer.step()


def returning_the_norm(world, x, y):
    world.optimizer.zero_grad()
    loss = world.loss(x, y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(world.net.parameters(), 1.0)
    world.optimizer.step()
    return loss, norm


def training_a_generator(world, x, y):
    world.optimizer.zero_grad()
    world.loss(world.maker(x).detach(), y).backward()
    world.optimizer.step()
    world.other.zero_grad()
    (-world.loss(world.maker(x), y)).backward()
    world.other.step()


def never_clearing(world, x, y):
    world.loss(x, y).backward()
    world.optimizer.step()


def looping_in_the_optimizer(world, x, y):
    def closure():
        world.lbfgs.zero_grad()
        loss = world.loss(x, y)
        loss.backward()
        return loss

    return world.lbfgs.step(closure)


def average_by_hand(world, loss):
    with torch.no_grad():
        world.mean.lerp_(world.net[0].weight, 0.1)


def clamp(world, loss):
    with torch.no_grad():
        world.net[0].weight.clamp_(-0.5, 0.5)


def set_the_rate(world, x, y):
    world.optimizer.param_groups[0]["lr"] = 0.5


REFUSED = {
    "dropout": (once(loss=lambda w, x, y: World.loss(w, F.dropout(x), y)), "random numbers"),
    "noise": (once(loss=lambda w, x, y: World.loss(w, x + torch.randn(4), y)), "random numbers"),
    "a batch norm": (once(loss=lambda w, x, y: World.loss(w, w.norm(x), y)), "normalisation"),
    "one without statistics": (
        once(loss=lambda w, x, y: World.loss(w, F.batch_norm(x, None, None, training=True), y)),
        "normalisation",
    ),
    "a buffer": (once(loss=lambda w, x, y: World.loss(w, w.counting(x), y)), "counting.calls"),
    "an average by hand": (once(after=average_by_hand), "changes world.mean"),
    "a clamp by hand": (once(after=clamp), "changes world.net.0.weight"),
    "a gradient by hand": (changing_gradients, "0.weight.grad"),
    "clipping unseen": (clipping_behind_the_back, ".grad"),
    "a rate by hand": (once(before=set_the_rate), "hyper-parameter"),
    "a plateau": (once(after=lambda w, loss: w.plateau.step(loss.detach())), "watches a value"),
    "two phases": (training_a_generator, "after its update"),
    "a forward behind": (once(result=lambda w, x, loss: w.net(x).detach()), "after its update"),
    "no clearing": (never_clearing, "never clears"),
    "a loop of its own": (looping_in_the_optimizer, "own loop"),
    "a norm returned": (returning_the_norm, "computed from gradients"),
    "a number returned": (once(result=lambda w, x, loss: (loss, len(x))), "neither a tensor nor"),
    "a count returned": (once(result=lambda w, x, loss: (x > 0).sum()), "whole number"),
    "a sum returned": (once(result=lambda w, x, loss: x.sum(0)), "row for each sample"),
}


class Odd(World):
    """The world of steps that are refused."""

    def __init__(self):
        super().__init__(2)
        self.norm, self.counting = nn.BatchNorm1d(4), Counting()
        self.mean = torch.zeros_like(self.net[0].weight)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer)
        self.maker = nn.Linear(4, 4)
        self.other = torch.optim.SGD(self.maker.parameters(), lr=0.1)
        self.lbfgs = torch.optim.LBFGS(self.net.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_would_mean_something_else_is_refused_before_anything_changes(name):
    body, words = REFUSED[name]
    world = Odd()
    before = [t.clone() for t in (*world.net.parameters(), world.counting.calls, world.mean)]
    step = stepgraph.compile(lambda x, y: body(world, x, y), microbatches=2, on_fallback="silent")

    with pytest.raises(ConfigurationError, match=words):
        step(*regression(0))

    after = [*world.net.parameters(), world.counting.calls, world.mean]
    assert all(map(torch.equal, before, after))
    assert all(p.grad is None for p in world.net.parameters())


@pytest.mark.parametrize("changed", ["row", "table", "x"])
def test_an_argument_may_be_changed_where_each_part_has_its_own_piece(changed):
    world = World(2)

    @stepgraph.compile(microbatches=Microbatches(2, whole=("table",)))
    def step(x, y, row, table):
        {"row": row, "table": table, "x": x}[changed].mul_(0.5)
        return plain_with_closure(world, x + row, y + table)

    x, y = regression(0)
    arguments = x, y, torch.ones(1, 4), torch.ones(2)
    if changed == "x":
        step(*arguments)
        assert torch.equal(x, regression(0)[0] * 0.5)
    else:
        with pytest.raises(ConfigurationError, match=f"changes {changed}"):
            step(*arguments)
        assert torch.equal(arguments[2], torch.ones(1, 4))
        assert torch.equal(arguments[3], torch.ones(2))


def test_a_normalisation_that_knows_no_batch_is_not_refused():
    class Normalised(World):
        def loss(self, x, y):
            x = F.batch_norm(x, torch.zeros(4), torch.ones(4), training=False)
            x = self.instance(F.group_norm(x, 2).view(-1, 2, 2)).flatten(1)
            return super().loss(x.mul_(2.0), y)

        instance = nn.InstanceNorm1d(2)

    assert_captured(
        same_as_eager(
            beside(PAIRS["with a closure"], lambda: Normalised(2)),
            calls=3,
            decorated=True,
            microbatches=2,
        )
    )


def test_a_path_that_is_refused_later_raises_before_anything_changes():
    world = World(2)

    @stepgraph.compile(microbatches=2)
    def step(x, y, noisy):
        return plain_with_closure(world, F.dropout(x) if noisy else x, y)

    for _ in range(3):
        step(*regression(0), False)
    before = [p.clone() for p in world.net.parameters()]

    with pytest.raises(ConfigurationError, match="random numbers"):
        step(*regression(0), True)

    assert all(map(torch.equal, before, world.net.parameters()))
    assert step.explain().replays == 1


def test_where_falling_back_is_an_error_a_refused_call_has_changed_nothing(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_CAPTURE_FAILURES", "1")
    world = World(2)

    @stepgraph.compile(microbatches=2, on_fallback="error")
    def step(x, y):
        with torch.no_grad():
            torch.manual_seed(0) if len(x) == 2 else None
        return plain_with_closure(world, x, y)

    step(*sized(6)(0))
    before = [p.clone() for p in world.net.parameters()]

    with pytest.raises(CaptureError):
        step(*sized(4)(0))

    assert all(map(torch.equal, before, world.net.parameters()))
