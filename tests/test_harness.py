"""The harness must find every damage that a wrong compiler could do."""

import re
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import Program, draw, regression, same_as_eager
from support.state_walk import DifferenceError, assert_same

DAMAGED_CALL = 3


class World:
    """A program with one of everything, and handles to damage it by."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        self.tied = nn.ModuleDict({"one": self.net[0]})
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        self.losses, self.recent, self.metrics = [], deque(maxlen=3), {}
        self.loss, self.count = None, 0

    def step(self, x, y):
        self.optimizer.zero_grad()
        noise = torch.rand(())
        loss = functional.mse_loss(self.net(x), y) * noise
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.losses.append(loss.detach())
        self.recent.append(loss.detach())
        self.metrics["loss"] = loss.detach()
        self.count += 1
        print(f"loss {loss.item():.3f}")  # noqa: T201 - the harness watches it
        return {"loss": loss, "nothing": None}


def damaged_by(damage, *, instead=False):
    """A compiler whose step does damage in one call, after or instead of its work."""

    def compiler(step, **options):
        count = 0

        def run(x, y):
            nonlocal count
            count += 1
            result = None if instead and count == DAMAGED_CALL else step(x, y)
            if count == DAMAGED_CALL:
                found = damage(step.__self__)
                result = found if found is not None or instead else result
            return result

        return run

    return compiler


def check(compiler, calls=5):
    def make():
        return Program(World().step, regression)

    same_as_eager(make, calls, compiler=compiler)


def replace_parameter(world):
    old = world.net[2].weight
    world.net[2].weight = nn.Parameter(old.detach().clone())
    world.net[2].weight.grad = old.grad


def untie(world):
    twin = nn.Linear(4, 5)
    twin.load_state_dict(world.net[0].state_dict())
    world.tied["one"] = twin


def swap_strides(world):
    weight = world.net[2].weight
    weight.grad = weight.grad.t().contiguous().t()


def leave_flag(world):
    torch._dynamo.config.trace_autograd_ops = not torch._dynamo.config.trace_autograd_ops


def nudge(world):
    with torch.no_grad():
        weight = world.net[2].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def grow_state(world):
    next(iter(world.optimizer.state.values()))["extra"] = 1


DAMAGE = {
    "one parameter moved by one bit": (nudge, "['weight'][0, 0]"),
    "a gradient dropped": (lambda w: setattr(w.net[2].weight, "grad", None), "grad"),
    "a gradient zero instead of kept": (lambda w: w.net[2].weight.grad.zero_(), "grad"),
    "a gradient laid out otherwise": (swap_strides, "stride"),
    "a flag flipped": (lambda w: w.net[2].weight.requires_grad_(False), "requires_grad"),
    "a parameter replaced": (replace_parameter, "identity"),
    "tied modules untied": (untie, "tied"),
    "a running mean kept": (lambda w: w.net[1].running_mean.zero_(), "running_mean"),
    "a batch counted twice": (lambda w: w.net[1].num_batches_tracked.add_(1), "num_batches"),
    "a module in another mode": (lambda w: w.net[1].eval() and None, "training"),
    "a learning rate lost": (
        lambda w: w.optimizer.param_groups[0].update(lr=0.1),
        "param_groups[0]['lr']",
    ),
    "a number of another type": (
        lambda w: w.optimizer.param_groups[0].update(weight_decay=1),
        "weight_decay",
    ),
    "a schedule stepped twice": (lambda w: w.scheduler.step(), "param_groups|scheduler"),
    "an optimizer's state grown": (grow_state, "state"),
    "an optimizer's method patched": (
        lambda w: setattr(w.optimizer, "zero_grad", lambda: None),
        "zero_grad",
    ),
    "a loss scale changed": (
        lambda w: w.scaler.load_state_dict({**w.scaler.state_dict(), "scale": 4.0}),
        "scaler",
    ),
    "a logged value lost": (lambda w: w.losses.pop() and None, "losses"),
    "a logged value converted": (lambda w: w.losses.append(w.losses.pop().item()), "losses"),
    "a queue shortened": (lambda w: w.recent.popleft() and None, "recent"),
    "a dict entry stale": (lambda w: w.metrics.update(loss=w.losses[0]), "metrics"),
    "an attribute added": (lambda w: setattr(w, "shadow", 1), "attributes"),
    "a counter not counted": (lambda w: setattr(w, "count", 2), "count"),
    "a random number drawn": (lambda w: torch.rand(()) and None, "randomness"),
    "a result replaced": (lambda w: {"loss": w.losses[0], "nothing": None}, "result"),
    "a None that is something": (lambda w: {"loss": w.losses[-1], "nothing": 0}, "nothing"),
    "a line printed": (lambda w: print("again"), "printed"),  # noqa: T201
    "an earlier loss overwritten": (lambda w: w.losses[0].add_(1) and None, "losses"),
    "gradients left switched off": (lambda w: torch.set_grad_enabled(False) and None, "grad mode"),
    "autocast left on": (lambda w: torch.set_autocast_enabled("cpu", True), "autocast"),
    "the tracer left in another state": (leave_flag, "trace_autograd_ops"),
}


@pytest.fixture(autouse=True)
def _modes_are_put_back():
    yield
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)
    torch._dynamo.config.trace_autograd_ops = False


def test_a_step_left_as_it_is_passes():
    check(lambda step, **options: step)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_in_the_call_that_does_it(name):
    damage, where = DAMAGE[name]

    with pytest.raises(AssertionError) as found:
        check(damaged_by(damage))

    message = str(found.value)
    assert f"after call {DAMAGED_CALL - 1}" in message
    assert re.search(re.escape(where).replace(r"\|", "|"), message), message


def test_a_call_left_out_is_found():
    with pytest.raises(AssertionError, match="after call 2"):
        check(damaged_by(lambda world: None, instead=True))


def test_a_result_that_a_later_call_overwrites_is_found():
    def compiler(step, **options):
        buffer = torch.zeros(())

        def run(x, y):
            result = step(x, y)
            buffer.copy_(result["loss"].detach())
            return {**result, "loss": buffer}

        return run

    with pytest.raises(AssertionError, match="the kept result 0"):
        check(compiler)


def test_a_detached_result_is_the_one_difference_allowed():
    def compiler(step, **options):
        def run(x, y):
            result = step(x, y)
            return {**result, "loss": result["loss"].detach()}

        return run

    check(compiler)


def failing(error):
    """A program whose third call raises after it has drawn a number."""

    def make():
        weight = nn.Parameter(torch.zeros(3))
        count = [0]

        def step(x):
            count[0] += 1
            weight.grad = x
            if count[0] == DAMAGED_CALL:
                raise error
            return None

        return Program(step, lambda index: (draw(3, seed=index),))

    return make


def test_errors_of_both_runs_are_compared():
    same_as_eager(failing(ValueError("no")), compiler=lambda step, **options: step)


@pytest.mark.parametrize("raised", [None, TypeError("no"), ValueError("yes")])
def test_another_error_or_none_is_found(raised):
    def compiler(step, **options):
        def run(x):
            try:
                return step(x)
            except ValueError as error:
                if raised is not None:
                    raise raised from error

        return run

    with pytest.raises(AssertionError, match="after call 2: the error raised"):
        same_as_eager(failing(ValueError("no")), compiler=compiler)


def test_a_changed_argument_is_found():
    def compiler(step, **options):
        def run(x):
            x.requires_grad_()
            return step(x.detach())

        return run

    with pytest.raises(AssertionError, match="arguments"):
        same_as_eager(failing(ValueError("no")), compiler=compiler)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (0.0, -0.0),
        (1, True),
        (1, 1.0),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.zeros(1), -torch.zeros(1)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.float64)),
        (torch.zeros(1), torch.zeros(1, 1)),
        (torch.zeros(1), nn.Parameter(torch.zeros(1))),
        (torch.zeros(2, 3), torch.zeros(3, 2).t()),
        (torch.zeros(1, requires_grad=True), torch.zeros(1)),
        (torch.ones(1).to_sparse(), torch.zeros(1).to_sparse()),
        (torch.tensor([float("inf")]), torch.tensor([float("nan")])),
    ],
    ids=str,
)
def test_values_that_only_look_alike_differ(left, right):
    with pytest.raises(DifferenceError):
        assert_same("value", left, right)


def test_a_nan_equals_a_nan():
    nan = float("nan")

    assert_same("value", [torch.tensor([nan, 1]), nan], [torch.tensor([nan, 1]), nan])
