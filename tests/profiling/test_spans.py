"""Whoever profiles a training with torch's own profiler finds the nodes of a step by name."""

import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import stepgraph
from stepgraph.runtime import spans
from support.harness import mlp, regression


class World:
    def __init__(self):
        torch.manual_seed(0)
        self.net = mlp()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train(self, x, y):
        self.opt.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.opt.step()
        return loss


@pytest.fixture(scope="module")
def step():
    compiled = stepgraph.compile(World().train, on_fallback="error")
    for index in range(3):
        compiled(*regression(index))
    return compiled


def spans_of(step, calls=1):
    """The spans of a profile that are no operators, with what is directly inside them."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        for index in range(calls):
            step(*regression(index))
    events = recorded.events()
    return [e for e in events if not e.name.startswith(("aten::", "[", "Optimizer."))]


def test_nodes_are_spans_in_a_span_of_the_step_while_somebody_profiles(step):
    found = sorted(spans_of(step), key=lambda event: event.time_range.start)

    assert [span.name for span in found] == [
        "World.train (stepgraph)",
        "zero_grad SGD(opt)",
        "forward_0",
        "backward_0",
        "accumulate_0",
        "step SGD(opt)",
    ]
    forward = next(span for span in found if span.name == "forward_0")
    assert "aten::addmm" in [child.name for child in forward.cpu_children]
    assert all(span.cpu_parent is found[0] for span in found[1:])


def test_every_call_has_its_spans_and_computes_the_same(step):
    twin = World()
    world = World()
    profiled = stepgraph.compile(world.train, on_fallback="error")
    for index in range(2):
        profiled(*regression(index))
        twin.train(*regression(index))

    found = spans_of(profiled, calls=3)
    for index in range(3):
        twin.train(*regression(index))

    assert [span.name for span in found].count("backward_0") == 3
    ours, theirs = world.net.parameters(), twin.net.parameters()
    assert all(map(torch.equal, ours, theirs))


def test_nothing_is_made_for_a_profiler_that_is_not_there(step):
    fresh = stepgraph.compile(World().train, on_fallback="error")
    for index in range(4):
        fresh(*regression(index))

    (variant,) = fresh._variants
    assert variant.program.spans._marked is None


def test_a_span_is_closed_when_an_operator_raises(monkeypatch):
    seen = []

    class Span:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            seen.append(("in", self.name))

        def __exit__(self, *error):
            seen.append(("out", self.name))

    def make(mark):
        def program():
            mark(0)
            mark(1)
            raise IndexError

        return ["forward_0", "backward_0"], program

    monkeypatch.setattr(spans, "record_function", Span)

    with pytest.raises(IndexError):
        spans.Spans("step (stepgraph)", make)()

    assert seen == [
        ("in", "step (stepgraph)"),
        ("in", "forward_0"),
        ("out", "forward_0"),
        ("in", "backward_0"),
        ("out", "backward_0"),
        ("out", "step (stepgraph)"),
    ]
