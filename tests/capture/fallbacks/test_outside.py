"""Calls into the world outside, and functions that are no training steps."""

import warnings

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn import functional

import stepgraph
from capture.fallbacks.world import World, plain, program
from stepgraph.errors import ConfigurationError
from support.harness import (
    Program,
    assert_captured_or_explained,
    regression,
    same_as_eager,
)


def warns(world, x, y):
    warnings.warn("again", UserWarning, stacklevel=1)
    return world.update(world.loss(x, y))


def test_a_warning_of_the_step_is_given_in_every_call():
    counts = []
    for compiler in (lambda step: step, stepgraph.compile(on_fallback="silent")):
        torch.manual_seed(0)
        world = World()
        step = compiler(lambda x, y, world=world: warns(world, x, y))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for index in range(5):
                step(*regression(index))
        counts.append(sum(str(one.message) == "again" for one in caught))

    assert counts == [5, 5]
    assert_captured_or_explained(step)


def calls_back(world, x, y):
    loss = world.update(world.loss(x, y))
    world.callback(loss.detach())
    return loss


def test_a_callback_of_the_user_is_called():
    def make():
        inner = program(calls_back)()
        world = inner.watch
        world.callback = lambda value: world.seen.append(value)
        return inner

    assert_captured_or_explained(same_as_eager(make))


def writes_to_a_stream(world, x, y):
    loss = world.update(world.loss(x, y))
    world.stream.write(f"{loss.item():.6f}\n")


def test_a_line_written_to_a_file_is_written_in_every_call(tmp_path):
    texts = []
    for name, compiler in {
        "eager": lambda step: step,
        "compiled": stepgraph.compile(on_fallback="silent"),
    }.items():
        torch.manual_seed(0)
        world = World()
        with open(tmp_path / name, "w") as world.stream:
            step = compiler(lambda x, y, world=world: writes_to_a_stream(world, x, y))
            for index in range(5):
                step(*regression(index))
        texts.append((tmp_path / name).read_text())

    assert texts[0] == texts[1]


def raises_and_catches(world, x, y):
    try:
        torch.linalg.cholesky(x[:4, :4] - 100 * torch.eye(4))
    except torch.linalg.LinAlgError:
        world.seen.append("singular")
    return world.update(world.loss(x, y))


def test_an_error_that_the_step_catches_is_caught():
    assert_captured_or_explained(same_as_eager(program(raises_and_catches)))


def test_a_model_that_the_user_compiled_is_exact():
    steps = [lambda step: step, stepgraph.compile(on_fallback="silent")]
    weights = []
    for compiler in steps:
        torch.manual_seed(0)
        world = World()
        inner = world.net
        world.net = torch.compile(inner, backend="eager")
        step = compiler(lambda x, y, world=world: plain(world, x, y))
        for index in range(6):
            step(*regression(index))
        weights.append(list(inner.parameters()))

    assert all(map(torch.equal, *weights))
    assert_captured_or_explained(step)


def test_a_custom_autograd_function_is_exact():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * 3 + x * 0

    def body(world, x, y):
        return world.update(functional.mse_loss(Doubled.apply(world.net(x)), y))

    assert_captured_or_explained(same_as_eager(program(body)))


def test_a_generator_function_is_refused():
    def step(x):
        yield x

    with pytest.raises(ConfigurationError, match="generator"):
        stepgraph.compile(step)


def test_a_coroutine_function_is_refused():
    async def step(x):
        return x

    with pytest.raises(ConfigurationError):
        stepgraph.compile(step)


def test_a_step_that_returns_a_generator_runs_exactly():
    def make():
        world = World()

        def step(x, y):
            loss = world.update(world.loss(x, y))
            return (value for value in (loss.detach(), loss.detach() * 2))

        return Program(lambda x, y: list(step(x, y)), regression, watch=world)

    assert_captured_or_explained(same_as_eager(make))


def test_a_step_without_a_backward_runs_exactly():
    def body(world, x, y):
        return world.loss(x, y).detach()

    assert_captured_or_explained(same_as_eager(program(body)))


def test_a_step_that_does_nothing_runs_exactly():
    assert_captured_or_explained(same_as_eager(program(lambda world, x, y: None)))


def test_a_compiled_step_inside_a_compiled_step_runs_exactly():
    def make(decorate):
        world = World()
        inner = decorate(lambda x, y: plain(world, x, y))

        @decorate
        def step(x, y):
            return inner(x, y) + inner(y @ torch.ones(2, 4), y)

        return Program(step, regression, watch=world)

    assert_captured_or_explained(same_as_eager(make, decorated=True))


@pytest.mark.parametrize("calls", [0, 3])
def test_a_compiled_step_is_part_of_an_export_that_calls_it(calls):
    net = nn.Linear(4, 3)

    @stepgraph.compile(on_fallback="error")
    def forward(x):
        return net(x).relu().detach()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return forward(x) + 1

    x = torch.randn(2, 4)
    for _ in range(calls):
        forward(x)

    exported = torch.export.export(Whole(), (x,), strict=False)

    assert torch.equal(exported.module()(x), net(x).relu() + 1)
