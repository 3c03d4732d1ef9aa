"""An error in the middle of a replay leaves everything as program order has it there."""

import contextlib
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
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
from support.raising_programs import BAD_CALLS, assert_recovers, failing


class Halves:
    """Two models with an optimizer each; the second one reads the embedding that may fail."""

    def __init__(self, optimizer=torch.optim.Adam):
        self.first = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)
        )
        self.table = nn.Embedding(7, 3)
        self.second = nn.Linear(3, 2)
        self.opt1 = optimizer(self.first.parameters(), lr=0.01)
        self.opt2 = optimizer([*self.table.parameters(), *self.second.parameters()], lr=0.01)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.opt1, 2)
        self.losses = []


def tokens_batch(index, bad):
    tokens = draw_labels(5, below=7, seed=index)
    if bad:
        tokens[3] = 9
    return draw(5, 4, seed=index), tokens


def second_half_fails(world):
    """The first half has updated, scheduled and logged when the second one fails."""

    def step(x, tokens):
        world.opt1.zero_grad()
        loss = world.first(x).square().mean()
        loss.backward()
        world.opt1.step()
        world.schedule.step()
        world.losses.append(loss.detach())
        world.opt2.zero_grad()
        noise = torch.rand(5, 3)
        loss2 = world.second(world.table(tokens) * noise).square().mean()
        loss2.backward()
        world.opt2.step()
        return loss, loss2

    return step


def fails_before_the_update(world):
    def step(x, tokens):
        hidden = world.first(x)
        loss = (hidden * world.table(tokens)).mean()
        world.opt1.zero_grad()
        world.opt2.zero_grad()
        loss.backward()
        world.opt1.step()
        world.opt2.step()
        return loss

    return step


def fails_after_everything(world):
    def step(x, tokens):
        world.opt1.zero_grad()
        loss = world.first(x).square().mean()
        loss.backward()
        world.opt1.step()
        world.schedule.step()
        with torch.no_grad():
            world.table.weight.mul_(0.9)
            return loss, world.table(tokens)

    return step


def fails_with_gradients_kept(world):
    """Gradients accumulate from call to call; the failing call has added to some of them."""

    def step(x, tokens):
        loss = world.first(x).square().mean()
        loss.backward()
        loss2 = world.second(world.table(tokens)).square().mean()
        loss2.backward()
        world.opt1.step()
        world.opt2.step()
        world.opt2.zero_grad()
        return loss2

    return step


def fails_under_autocast(world):
    def step(x, tokens):
        world.opt1.zero_grad()
        world.opt2.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = world.first(x)
            loss = (hidden * world.second.weight.sum() * world.table(tokens)).float().mean()
        loss.backward()
        world.opt1.step()
        world.opt2.step()

    return step


def fails_under_no_grad(world):
    def step(x, tokens):
        world.opt1.zero_grad()
        with torch.no_grad():
            goal = world.table(tokens)
        loss = functional.mse_loss(world.first(x), goal)
        loss.backward()
        world.opt1.step()

    return step


FAILURES = [
    second_half_fails,
    fails_before_the_update,
    fails_after_everything,
    fails_with_gradients_kept,
    fails_under_autocast,
    fails_under_no_grad,
]


@pytest.mark.parametrize("step_of", FAILURES)
def test_an_index_out_of_range_leaves_what_eager_leaves(step_of):
    step = assert_recovers(failing(Halves, step_of, tokens_batch), "IndexError")

    assert_captured(step)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimizer_of_the_first_half_keeps_its_update(optimizer):
    step = assert_recovers(
        failing(lambda: Halves(optimizer), second_half_fails, tokens_batch), "IndexError"
    )

    assert_captured(step)


class Covariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(outputs=3)
        self.norm = nn.BatchNorm1d(4)
        self.opt = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def matrix_batch(index, bad):
    x = draw(6, 4, seed=index)
    return x, -torch.eye(3) if bad else torch.eye(3)


@pytest.mark.parametrize("solve", [torch.linalg.cholesky, torch.linalg.inv], ids=["chol", "inv"])
def test_a_matrix_that_cannot_be_factored_leaves_what_eager_leaves(solve):
    def step_of(world):
        def step(x, matrix):
            world.opt.zero_grad()
            hidden = functional.dropout(world.net(world.norm(x)), 0.2)
            shift = matrix if solve is torch.linalg.cholesky else matrix + torch.eye(3)
            loss = (hidden @ solve(shift)).square().mean()
            loss.backward()
            world.opt.step()
            return loss

        return step

    step = assert_recovers(
        failing(Covariance, step_of, matrix_batch), "LinAlgError", "_LinAlgError"
    )

    assert_captured(step)


def test_a_label_out_of_range_leaves_what_eager_leaves():
    def build():
        net = mlp(outputs=3)
        return net, torch.optim.AdamW(net.parameters(), lr=0.01)

    def step_of(world):
        net, opt = world

        def step(x, y):
            opt.zero_grad()
            loss = functional.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            return loss

        return step

    def batch(index, bad):
        labels = draw_labels(6, below=3, seed=index)
        return draw(6, 4, seed=index), labels + 2 if bad else labels

    assert_captured(assert_recovers(failing(build, step_of, batch), "IndexError"))


def test_shapes_that_do_not_fit_raise_as_in_eager_and_later_calls_replay():
    def build():
        net = mlp()
        return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step_of(world):
        net, opt = world

        def step(x, y):
            opt.zero_grad()
            loss = functional.mse_loss(net(x), y)
            loss.backward()
            opt.step()
            return loss

        return step

    def batch(index, bad):
        x, y = regression(index)
        return (x[:, :3], y) if bad else (x, y)

    step = assert_recovers(failing(build, step_of, batch), "RuntimeError")

    assert step.explain().captured
    assert step.explain().replays >= 4


class Checked:
    def __init__(self):
        self.net = mlp()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)


def asserting(world):
    def step(x, y):
        world.opt.zero_grad()
        loss = functional.mse_loss(world.net(x), y)
        assert torch.isfinite(loss), "the loss is not finite"
        loss.backward()
        world.opt.step()
        return loss

    return step


def asserting_without_a_message(world):
    def step(x, y):
        world.opt.zero_grad()
        loss = functional.mse_loss(world.net(x), y)
        loss.backward()
        assert not torch.isnan(world.net[0].weight.grad).any()
        world.opt.step()
        return loss

    return step


def asserting_on_the_input(world):
    def step(x, y):
        assert (x == x).all(), "missing values"
        world.opt.zero_grad()
        loss = functional.mse_loss(world.net(x), y)
        loss.backward()
        world.opt.step()
        return loss

    return step


def raising_by_hand(world):
    def step(x, y):
        world.opt.zero_grad()
        loss = functional.mse_loss(world.net(x), y)
        if not torch.isfinite(loss):
            raise FloatingPointError("the loss is not finite")
        loss.backward()
        world.opt.step()
        return loss

    return step


def nan_batch(index, bad):
    x, y = regression(index)
    return (x * float("nan") if bad else x), y


@pytest.mark.parametrize(
    ("step_of", "error"),
    [
        (asserting, "AssertionError"),
        (asserting_without_a_message, "AssertionError"),
        (asserting_on_the_input, "AssertionError"),
        (raising_by_hand, "FloatingPointError"),
    ],
)
def test_a_check_on_values_raises_what_eager_raises(step_of, error):
    assert_captured_or_explained(assert_recovers(failing(Checked, step_of, nan_batch), error))


def test_a_check_on_an_integer_argument_raises_what_eager_raises():
    def step_of(world):
        def step(x, y, epoch):
            if epoch < 0:
                raise ValueError("no such epoch")
            world.opt.zero_grad()
            loss = functional.mse_loss(world.net(x), y)
            loss.backward()
            world.opt.step()
            return loss

        return step

    def batch(index, bad):
        return (*regression(index), -1 if bad else 2)

    step = assert_recovers(failing(Checked, step_of, batch), "ValueError")

    assert step.explain().captured


def test_an_error_of_the_user_in_the_first_two_calls_does_not_keep_the_step_from_capture():
    def make():
        world = Checked()

        def step(x, y):
            world.opt.zero_grad()
            loss = functional.mse_loss(world.net(x), y)
            loss.backward()
            world.opt.step()
            return loss

        def batch(index):
            x, y = regression(index)
            return (x[:, :3] if index < 2 else x), y

        return Program(step, batch, watch=world)

    assert same_as_eager(make).explain().captured


def test_an_optimizer_that_raises_leaves_what_eager_leaves():
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            result = super().step(closure)
            if self.param_groups[0]["lr"] > 0.5:
                raise OverflowError("lr too large")
            return result

    def make():
        world = Checked()
        world.opt = Fragile(world.net.parameters(), lr=0.1, momentum=0.9)
        world.last = torch.optim.Adam(world.net.parameters(), lr=0.01)

        def step(x, y):
            world.opt.zero_grad()
            loss = functional.mse_loss(world.net(x), y)
            loss.backward()
            world.opt.step()
            world.last.step()
            return loss

        def between(index):
            world.opt.param_groups[0]["lr"] = 1.0 if index in BAD_CALLS else 0.1

        return Program(step, regression, watch=world, between=between)

    assert_captured_or_explained(same_as_eager(make, calls=10))


def test_a_traceback_shows_the_operator_and_no_half_made_state_survives_it():
    torch.manual_seed(0)
    world = Halves()
    step = stepgraph.compile(second_half_fails(world), on_fallback="error")
    for index in range(3):
        step(*tokens_batch(index, False))

    with pytest.raises(IndexError):
        step(*tokens_batch(3, True))

    assert len(world.losses) == 4
    assert all(p.grad is None for p in world.opt2.param_groups[0]["params"])
    assert all(p.grad is not None for p in world.first.parameters())
    assert torch.is_grad_enabled()


def test_an_interrupt_leaves_the_modes_as_found():
    torch.manual_seed(0)
    net = mlp()

    class Interrupted(torch.optim.SGD):
        armed = False

        def step(self, closure=None):
            if self.armed:
                raise KeyboardInterrupt
            return super().step(closure)

    opt = Interrupted(net.parameters(), lr=0.1)

    @stepgraph.compile(on_fallback="silent")
    def step(x, y):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.mse_loss(net(x).float(), y)
        loss.backward()
        opt.step()

    for index in range(3):
        step(*regression(index))
    opt.armed = True
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(KeyboardInterrupt):
        step(*regression(3))
    opt.armed = False
    step(*regression(4))

    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
