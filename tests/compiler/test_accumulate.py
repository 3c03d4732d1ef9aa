"""accumulate=n: a plain step, called n times, does what a loop written by hand does."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import stepgraph
from stepgraph.errors import CheckpointError, ConfigurationError
from support.harness import Program, assert_captured, mlp, regression, same_as_eager


class World:
    """A perceptron with everything that waits for the end of a window."""

    def __init__(self, length):
        self.length = length
        self.index = 0
        self.net = nn.Sequential(*mlp(), nn.Dropout(0.2))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.average = AveragedModel(self.net)
        self.seen = []

    def loss(self, x, y):
        return functional.mse_loss(self.net(x), y)

    def place(self):
        """Whether this is the first, and the last call of a window written by hand."""
        place = self.index % self.length
        self.index += 1
        return place == 0, place == self.length - 1


def plain_clearing_first(world, x, y):
    world.optimizer.zero_grad()
    loss = world.loss(x, y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
    world.optimizer.step()
    world.scheduler.step()
    world.average.update_parameters(world.net)
    world.seen.append(loss.detach())
    return loss, norm


def by_hand_clearing_first(world, x, y):
    first, last = world.place()
    if first:
        world.optimizer.zero_grad()
    loss = world.loss(x, y)
    (loss / world.length).backward()
    if last:
        norm = nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
        world.optimizer.step()
        world.scheduler.step()
        world.average.update_parameters(world.net)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in world.net.parameters()])
    world.seen.append(loss.detach())
    return loss, norm


def plain_clearing_last(world, x, y):
    loss = world.loss(x, y)
    loss.backward()
    nn.utils.clip_grad_value_(world.net.parameters(), 0.01)
    world.optimizer.step()
    world.optimizer.zero_grad()
    return loss


def by_hand_clearing_last(world, x, y):
    _, last = world.place()
    loss = world.loss(x, y)
    (loss / world.length).backward()
    if last:
        nn.utils.clip_grad_value_(world.net.parameters(), 0.01)
        world.optimizer.step()
        world.optimizer.zero_grad()
    return loss


def plain_clearing_twice(world, x, y):
    world.optimizer.zero_grad()
    loss = world.loss(x, y)
    loss.backward()
    world.optimizer.step()
    world.optimizer.zero_grad(set_to_none=False)
    return loss


def by_hand_clearing_twice(world, x, y):
    first, last = world.place()
    if first:
        world.optimizer.zero_grad()
    loss = world.loss(x, y)
    (loss / world.length).backward()
    if last:
        world.optimizer.step()
        world.optimizer.zero_grad(set_to_none=False)
    return loss


def plain_with_closure(world, x, y):
    def closure():
        world.optimizer.zero_grad()
        loss = world.loss(x, y)
        loss.backward()
        return loss

    return world.optimizer.step(closure)


def by_hand_with_closure(world, x, y):
    first, last = world.place()
    if first:
        world.optimizer.zero_grad()
    loss = world.loss(x, y)
    (loss / world.length).backward()
    if last:
        world.optimizer.step()
    return loss


PAIRS = {
    "clearing first": (plain_clearing_first, by_hand_clearing_first),
    "clearing last": (plain_clearing_last, by_hand_clearing_last),
    "clearing twice": (plain_clearing_twice, by_hand_clearing_twice),
    "with a closure": (plain_with_closure, by_hand_with_closure),
}


def beside(pair, length, world=World, batch=regression):
    """A program whose eager side is written by hand, and whose other side is compiled."""
    plain, by_hand = pair

    def make(decorate):
        here = world(length)

        def step(*batch):
            return plain(here, *batch)

        compiled = decorate(step)
        if compiled is step:
            return Program(lambda *batch: by_hand(here, *batch), batch, watch=Watched(here))
        return Program(compiled, batch, watch=Watched(here))

    return make


class Watched:
    """What must be the same on both sides: everything but the count kept by hand."""

    def __init__(self, world):
        self.__dict__ = {k: v for k, v in vars(world).items() if k != "index"}


# three calls are a first, a middle and a last one; more middle ones are more replays of one variant
LENGTHS = [(name, 3) for name in PAIRS] + [(next(iter(PAIRS)), length) for length in (2, 5)]


@pytest.mark.parametrize(("name", "length"), LENGTHS)
def test_a_window_is_the_loop_written_by_hand(name, length):
    step = same_as_eager(
        beside(PAIRS[name], length), calls=3 * length + 1, decorated=True, accumulate=length
    )

    assert_captured(step)


class TwoOptimizers:
    """A generator and its critic, trained on each other with toggled flags."""

    def __init__(self, length):
        self.length, self.index = length, 0
        self.maker, self.critic = nn.Linear(4, 2), nn.Linear(2, 1)
        self.one = torch.optim.Adam(self.maker.parameters(), lr=0.01)
        self.two = torch.optim.SGD(self.critic.parameters(), lr=0.1)

    place = World.place


def plain_duel(world, x, y):
    made = world.maker(x)
    world.two.zero_grad()
    loss = world.critic(made.detach()).mean() - world.critic(y).mean()
    loss.backward()
    world.two.step()
    world.one.zero_grad()
    for p in world.critic.parameters():
        p.requires_grad_(False)
    other = -world.critic(made).mean()
    other.backward()
    for p in world.critic.parameters():
        p.requires_grad_(True)
    world.one.step()
    return loss.detach(), other.detach()


def duel_by_hand(world, x, y):
    first, last = world.place()
    made = world.maker(x)
    if first:
        world.two.zero_grad()
    loss = world.critic(made.detach()).mean() - world.critic(y).mean()
    (loss / world.length).backward()
    if last:
        world.two.step()
    if first:
        world.one.zero_grad()
    for p in world.critic.parameters():
        p.requires_grad_(False)
    other = -world.critic(made).mean()
    (other / world.length).backward()
    for p in world.critic.parameters():
        p.requires_grad_(True)
    if last:
        world.one.step()
    return loss.detach(), other.detach()


def test_two_optimizers_have_one_window():
    step = same_as_eager(
        beside((plain_duel, duel_by_hand), 3, TwoOptimizers), 10, decorated=True, accumulate=3
    )

    assert_captured(step)


def test_micro_batches_of_different_sizes_and_a_scaler_share_a_window():
    class Scaled(World):
        def __init__(self, length):
            super().__init__(length)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def plain(world, x, y):
        world.optimizer.zero_grad()
        loss = world.loss(x, y)
        world.scaler.scale(loss).backward()
        world.scaler.unscale_(world.optimizer)
        nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
        world.scaler.step(world.optimizer)
        world.scaler.update()
        return loss

    def by_hand(world, x, y):
        first, last = world.place()
        if first:
            world.optimizer.zero_grad()
        loss = world.loss(x, y)
        (world.scaler.scale(loss) / world.length).backward()
        if last:
            world.scaler.unscale_(world.optimizer)
            nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
            world.scaler.step(world.optimizer)
            world.scaler.update()
        return loss

    def batch(index):
        x, y = regression(index)
        size = 3 + index % 3
        return (x * float("inf") if index == 5 else x)[:size], y[:size]

    step = same_as_eager(
        beside((plain, by_hand), 2, Scaled, batch), 12, decorated=True, accumulate=2
    )

    assert step.explain().captured


def weights_after(calls, length, flush=True):
    torch.manual_seed(0)
    world = World(length)
    world.net = world.net.double()

    @stepgraph.compile(accumulate=length)
    def step(x, y):
        return plain_clearing_first(world, x, y)

    losses = [step(*(t.double() for t in regression(index)))[0] for index in range(calls)]
    flushed = step.flush() if flush else None
    return world, step, losses, flushed


def weights_by_hand(sizes):
    torch.manual_seed(0)
    world = World(1)
    world.net = world.net.double()
    index = 0
    for size in sizes:
        world.optimizer.zero_grad()
        for _ in range(size):
            loss = world.loss(*(t.double() for t in regression(index)))
            (loss / size).backward()
            index += 1
        nn.utils.clip_grad_norm_(world.net.parameters(), 0.1)
        world.optimizer.step()
        world.scheduler.step()
        world.average.update_parameters(world.net)
    return world


@pytest.mark.parametrize(("calls", "sizes"), [(1, [1]), (7, [4, 3]), (9, [4, 4, 1])])
def test_a_short_window_is_normalised_by_its_own_length(calls, sizes):
    world, _, _, flushed = weights_after(calls, 4)
    expected = weights_by_hand(sizes)

    assert flushed
    for ours, theirs in zip(world.net.parameters(), expected.net.parameters(), strict=True):
        # n/m times a sum of 1/n parts rounds a few times more than a sum of 1/m parts
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(world.average.parameters(), expected.average.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert world.scheduler.state_dict() == expected.scheduler.state_dict()
    assert int(world.average.n_averaged) == len(sizes)


def test_a_flush_without_a_window_does_nothing():
    world, step, _, _ = weights_after(8, 4, flush=False)
    before = [p.clone() for p in world.net.parameters()]

    assert step.flush() is False
    assert all(map(torch.equal, before, world.net.parameters()))


def test_after_a_flush_a_new_window_begins():
    world, step, _, _ = weights_after(5, 4)
    updates = world.optimizer.state[next(world.net.parameters())]["step"].item()

    for index in range(4):
        step(*(t.double() for t in regression(index)))

    assert updates == 2
    assert world.optimizer.state[next(world.net.parameters())]["step"].item() == 3


def test_a_window_survives_in_a_state_dict():
    _, step, _, _ = weights_after(6, 4, flush=False)
    _, other, _, _ = weights_after(4, 4, flush=False)

    other.load_state_dict(step.state_dict())

    assert other.state_dict() == step.state_dict() == {"position": 2, "accumulate": 4}
    with pytest.raises(CheckpointError, match="another window"):
        other.load_state_dict({"position": 0, "accumulate": 2})


def test_a_window_that_was_only_loaded_cannot_be_flushed_yet():
    _, step, _, _ = weights_after(4, 4, flush=False)
    step.load_state_dict({"position": 2, "accumulate": 4})

    with pytest.raises(ConfigurationError, match="call the step once"):
        step.flush()

    assert step.state_dict()["position"] == 2


def test_an_open_window_cannot_be_reset():
    _, step, _, _ = weights_after(3, 2, flush=False)

    with pytest.raises(ConfigurationError, match="cannot be reset"):
        step.reset()
    step.flush()
    step.reset()

    assert step.explain().captures == 0


def test_the_calls_that_do_not_update_hold_no_update():
    _, step, _, _ = weights_after(8, 4, flush=False)

    # the first call is eager, so the first of a window is captured last
    middle, last, first = ({kind.value for kind in graph.count()} for graph in step.graphs)

    update = {"step", "lr_step", "ema", "clip"}
    assert update <= last
    assert not update & (first | middle)
    assert "zero_grad" in first
    assert "zero_grad" not in middle | last


def test_a_call_that_raises_does_not_count():
    net = nn.Embedding(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    @stepgraph.compile(accumulate=2)
    def step(x):
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()

    good, bad = torch.tensor([1]), torch.tensor([9])
    for x in (good, good, good, bad, good, bad):
        with contextlib.suppress(IndexError):
            step(x)

    assert step.state_dict()["position"] == 0


def bare(body, **options):
    """A compiled step around a linear layer, called once."""
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.clone() for p in net.parameters()]

    @stepgraph.compile(accumulate=2, on_fallback="silent", **options)
    def step(x, y, index):
        return body(net, optimizer, functional.mse_loss(net(x), y), index)

    def call(index):
        step(*regression(index), index)

    return call, lambda: all(map(torch.equal, before, net.parameters()))


def accumulating_itself(net, optimizer, loss, index):
    loss.backward()
    if (index + 1) % 2 == 0:
        optimizer.step()
        optimizer.zero_grad()


def updating_twice(net, optimizer, loss, index):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    optimizer.step()


def never_clearing(net, optimizer, loss, index):
    loss.backward()
    optimizer.step()


def clearing_by_hand(net, optimizer, loss, index):
    optimizer.zero_grad()
    for p in net.parameters():
        p.grad = None
    loss.backward()
    optimizer.step()


def branching_on_a_value(net, optimizer, loss, index):
    optimizer.zero_grad()
    if loss > 0:
        loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (accumulating_itself, "updates nothing"),
        (updating_twice, "twice"),
        (never_clearing, "never clears"),
        (clearing_by_hand, "by hand"),
        (branching_on_a_value, "data-dependent"),
    ],
)
def test_a_step_without_a_window_is_refused_before_anything_changes(body, words):
    call, unchanged = bare(body)

    with pytest.raises(ConfigurationError, match=words):
        call(0)

    assert unchanged()


def test_a_fallback_keeps_the_window(monkeypatch):
    # the limit lets one variant in; every other call is eager, on the terms of its place
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "1")

    step = same_as_eager(beside(PAIRS["clearing first"], 3), calls=8, decorated=True, accumulate=3)

    assert "no variant" in step.explain().fallback_reason


def test_switched_off_it_still_accumulates(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "1")

    step = same_as_eager(beside(PAIRS["clearing first"], 3), calls=8, decorated=True, accumulate=3)

    assert step.explain().captures == 0


@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_a_length_that_is_none_is_refused(value):
    with pytest.raises(ConfigurationError, match="accumulate"):
        stepgraph.compile(lambda: None, accumulate=value)
