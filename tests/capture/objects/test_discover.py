"""Optimizers and their like are found before a step is traced, and then one trace is enough."""

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import StepLR

import stepgraph
from stepgraph import torch_private
from stepgraph.capture import TrackedObjects, self_test
from stepgraph.capture.objects.discover import discover


@pytest.fixture
def traces(monkeypatch):
    """Return the functions that were traced, as they come; not what tests torch itself."""
    self_test()
    seen, real = [], torch_private.trace

    def trace(function, *rest):
        seen.append(function)
        return real(function, *rest)

    monkeypatch.setattr(torch_private, "trace", trace)
    return seen


def pair():
    net = nn.Linear(3, 3)
    return net, Adam(net.parameters()), SGD(net.parameters(), lr=0.1)


def train(net, first, second, schedule, x):
    for optimizer in (first, second):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    schedule.step()


def in_a_closure():
    net, first, second = pair()
    schedule = StepLR(second, 2)

    def step(x):
        train(net, first, second, schedule, x)

    return step


def in_lists():
    net, *both = pair()
    schedules = {"second": StepLR(both[1], 2)}

    def step(x):
        train(net, *both, schedules["second"], x)

    return step


class Trainer:
    """Holds what it trains; some of its attributes are not for reading."""

    def __init__(self):
        self.net, self.first, self.second = pair()
        self.schedules = [StepLR(self.second, 2)]
        self.log = [0.0] * 1000

    @property
    def best(self):
        raise AssertionError("nobody asked for it")

    def step(self, x):
        train(self.net, self.first, self.second, self.schedules[0], x)


def in_an_object():
    return Trainer().step


@pytest.mark.parametrize("make", [in_a_closure, in_lists, in_an_object])
def test_one_trace_is_enough_for_several_optimizers_and_a_schedule(make, traces):
    step = stepgraph.compile(make(), on_fallback="error")

    for _ in range(3):
        step(torch.ones(2, 3))

    assert len(traces) == 1
    assert step.explain().captures == 1


def beside_an_unused():
    """Return a compiled step, and an optimizer that it sees and does not use."""
    net, used, other = pair()

    @stepgraph.compile(on_fallback="error")
    def step(x):
        used.zero_grad()
        net(x).square().mean().backward()
        used.step()
        return other is not None

    return step, other


def test_an_optimizer_that_is_in_sight_and_not_used_has_no_part_in_the_step():
    step, other = beside_an_unused()
    for _ in range(3):
        step(torch.ones(2, 3))
    del other.param_groups[0]["params"][:]  # a change that would matter if it was used
    step(torch.ones(2, 3))

    explanation = step.explain()
    assert explanation.captures == 1
    assert [o.label for v in explanation.variants for o in v.optimizers] == ["Adam(used)"]


def test_what_an_unused_optimizer_shows_is_as_before_after_a_capture():
    step, other = beside_an_unused()
    before = dict(vars(other))

    for _ in range(3):
        step(torch.ones(2, 3))

    assert vars(other) == before


class Guarded:
    """Answers no question about its attributes."""

    def __getattribute__(self, name):
        raise AssertionError(name)


def test_looking_ahead_runs_no_code_of_the_users_and_leaves_data_alone():
    subjects = TrackedObjects()
    _, first, second = pair()
    solver = LBFGS([nn.Parameter(torch.ones(1))])
    far = [[[first]]]
    data = [second, *range(100)]

    discover(subjects, [Guarded(), Guarded, far, data, solver, torch.ones(2)])

    assert subjects.all == []


def test_a_subject_is_met_once_however_it_is_called():
    subjects = TrackedObjects()
    _, first, second = pair()

    discover(subjects, [first, [first, second], {"again": second}])

    assert [subject.value for subject in subjects.all] == [first, second]
    for subject in subjects.all:
        subject.forget()
