"""Drawn training steps do the same compiled as they do eagerly."""

import dataclasses
import functools
import linecache
import random
import types
from collections import deque
from typing import ClassVar

import networkx as nx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as in the programs

import stepgraph
from stepgraph.ir import StepGraph
from stepgraph.passes import EarlyUpdate, OrderForMemory, Pass, Pipeline
from support import strategies
from support.harness import (
    Program,
    assert_captured,
    draw,
    draw_labels,
    mlp,
    regression,
    same_as_eager,
)

CALLS = 6
SEEDS = range(10)


def program(step: strategies.DrawnStep) -> Program:
    """The program of a drawn source, compiled as a file of its own."""
    make = module_of(step.source).make

    def batch(index):
        count = 4 if index == step.short_call else 6
        return (
            draw(count, 4, seed=index),
            draw(count, 4, seed=-index - 1),
            draw_labels(count, below=4, seed=index),
            index,
        )

    training_step, everything = make()
    return Program(training_step, batch, watch=everything)


@functools.lru_cache(maxsize=1)
def module_of(source: str) -> types.ModuleType:
    """A module with that source, which tracebacks and the tracer can read."""
    module = types.ModuleType("drawn_step")
    vars(module).update(torch=torch, nn=nn, F=F, deque=deque)
    vars(module).update({one.__name__: one for one in strategies.MODULES})
    filename = f"<drawn step {hash(source):x}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = len(source), None, lines, filename
    exec(compile(source, filename, "exec"), vars(module))
    return module


def run(step: strategies.DrawnStep, **options):
    """Compare the two runs of a drawn step; a failure shows its source."""
    try:
        return same_as_eager(lambda: program(step), CALLS, **options)
    except AssertionError as difference:
        raise AssertionError(f"{difference}\n\nin {step}") from None


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.timeout(1200)  # a failure is shrunk before it is shown
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # a schedule before its step
@settings(suppress_health_check=SLOW, max_examples=12)
@given(strategies.training_steps())
def test_a_drawn_step_is_the_same_compiled(step):
    run(step)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@settings(suppress_health_check=SLOW)
@given(strategies.training_steps())
def test_many_drawn_steps_are_the_same_with_every_update_and_operator_moved(step):
    run(step, passes=movers)


def movers(default):
    """The default passes, with no move too small for them."""
    others = [p for p in default if not isinstance(p, EarlyUpdate | OrderForMemory)]
    return Pipeline((*others, EarlyUpdate(1), OrderForMemory(1, 0.0)))


def test_most_drawn_steps_are_captured():
    reasons = {}
    for seed in SEEDS:
        drawing = program(strategies.training_step(seed))
        compiled = stepgraph.compile(drawing.step, on_fallback="silent")
        for index in range(3):
            compiled(*drawing.batch(index))
        explanation = compiled.explain()
        if explanation.fallback_reason or not explanation.captures:
            reasons[seed] = explanation.fallback_reason

    assert len(reasons) <= len(SEEDS) // 5, reasons


def test_a_seed_always_draws_the_same_step():
    first, again, other = (strategies.training_step(seed) for seed in (3, 3, 4))

    assert first == again != other


# --- the order of a step is what its dependencies say, and no less


@dataclasses.dataclass(frozen=True)
class AnyOrder(Pass):
    """Puts the nodes in an order that the dependencies allow, drawn."""

    seed: int

    def __call__(self, step):
        dice = random.Random(self.seed)
        order = nx.lexicographical_topological_sort(step.dependencies(), lambda _: dice.random())
        return step.reordered(list(order))


@dataclasses.dataclass(frozen=True)
class UncheckedOrder(AnyOrder):
    """The same, without the check of the pipeline that the effects are still those captured."""

    keeps_effects: ClassVar[bool] = False


def in_order(made: Pass):
    return {"passes": lambda default: default.then(made)}


def only_values(step: StepGraph, honest=StepGraph.dependencies) -> nx.DiGraph:
    """The dependencies of a step without those that come from effects."""
    graph = nx.DiGraph(honest(step))
    graph.remove_edges_from([(u, v) for u, v, why in graph.edges.data("resource") if why])
    output = step.nodes[-1]
    graph.add_edges_from([(node, output) for node in graph if node is not output])
    return graph


def two_halves():
    first, second = mlp(), mlp()
    opt1 = torch.optim.Adam(first.parameters(), lr=0.1)
    opt2 = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt1, 0.5)

    def step(x, y):
        loss1 = F.mse_loss(first(x), y)
        opt1.zero_grad()
        loss1.backward()
        nn.utils.clip_grad_norm_(first.parameters(), 0.1)
        opt1.step()
        schedule.step()
        loss2 = F.mse_loss(second(x), first(x).detach())
        opt2.zero_grad()
        loss2.backward()
        opt2.step()
        return loss1, loss2

    return Program(step, regression)


@pytest.mark.parametrize("seed", range(3))
def test_a_captured_step_is_the_same_in_any_order_its_dependencies_allow(seed):
    assert_captured(same_as_eager(two_halves, CALLS, **in_order(UncheckedOrder(seed))))


def test_a_drawn_step_is_the_same_in_any_order_its_dependencies_allow():
    assert_captured(run(strategies.training_step(101), **in_order(AnyOrder(101))))


@pytest.mark.parametrize(
    ("made", "words"), [(UncheckedOrder(0), "differs from eager"), (AnyOrder(0), "AnyOrder")]
)
def test_without_the_edges_of_effects_a_wrong_order_is_found(monkeypatch, made, words):
    monkeypatch.setattr(StepGraph, "dependencies", only_values)

    step = same_as_eager(two_halves, 3, **in_order(made))

    assert not step.explain().captured
    assert words in step.explain().fallback_reason


# --- shrunk from drawn steps


@pytest.mark.parametrize(
    "noise",
    [
        lambda: torch.distributions.Normal(0.0, 1.0),
        lambda: torch.distributions.Uniform(0.0, 1.0),
        lambda: torch.distributions.Bernoulli(0.5),
    ],
    ids=["normal", "uniform", "bernoulli"],
)
def test_a_distribution_made_of_numbers_in_the_step_is_captured(noise):
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.mse_loss(net(x * noise().sample(x.shape)), y)
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, regression)

    assert_captured(same_as_eager(make, CALLS))


def test_a_list_that_grows_and_is_returned_is_captured_or_named():
    def make():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        losses = []

        def step(x, y):
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            return losses

        return Program(step, regression)

    explanation = same_as_eager(make, CALLS).explain()

    assert explanation.captured or "differs" not in explanation.fallback_reason
