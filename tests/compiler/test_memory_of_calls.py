"""A call leaves nothing of its batch behind: replayed, refused, or beyond the limit of variants."""

import gc
import weakref

import pytest
import torch
from torch import nn

import stepgraph

CALLS = 2000


class World:
    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.path = 0

    def update(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def replayed(world, x):
    world.update(world.net(x).mean())


def refused(world, x):
    loss = world.net(x).mean()
    if loss > 0:
        loss = loss * 2
    world.update(loss)


def of_many_paths(world, x):
    loss = world.net(x).mean()
    if world.path == 0:
        loss = loss * 2
    elif world.path == 1:
        loss = loss.sin()
    elif world.path == 2:
        loss = loss.cos()
    world.update(loss)


def tensors_alive():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("body", [replayed, refused, of_many_paths])
def test_no_batch_stays_alive_and_no_object_is_added(body, monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "2")
    monkeypatch.setenv("STEPGRAPH_MAX_CAPTURE_FAILURES", "2")
    world = World()
    step = stepgraph.compile(on_fallback="silent", backend="eager")(lambda x: body(world, x))
    batches, tensors, objects = [], [], []
    for index in range(CALLS):
        world.path = index % 4
        batch = torch.randn(2, 4)
        batches.append(weakref.ref(batch))
        step(batch)
        del batch
        if index in (CALLS // 4, CALLS - 1):
            gc.collect()
            tensors.append(tensors_alive())
            objects.append(len(gc.get_objects()))

    assert sum(reference() is not None for reference in batches) == 0
    assert tensors[1] <= tensors[0]  # captures of tests before may be collected meanwhile
    # the weak references themselves
    assert objects[1] - objects[0] <= CALLS


def test_what_is_stored_of_a_refusal_holds_no_frames():
    world = World()
    step = stepgraph.compile(on_fallback="silent")(lambda x: refused(world, x))
    for _ in range(4):
        step(torch.randn(2, 4))

    stored = [*step._fallbacks.counts, step._fallbacks.latest]
    assert stored
    for refusal in stored:
        assert refusal.__traceback__ is None
        assert refusal.__cause__ is None
        assert refusal.__context__ is None


def test_an_error_that_forbids_fallbacks_still_shows_its_cause():
    world = World()
    step = stepgraph.compile(on_fallback="error")(lambda x: refused(world, x))
    step(torch.randn(2, 4))

    with pytest.raises(stepgraph.errors.CaptureError, match="data-dependent") as raised:
        step(torch.randn(2, 4))
    assert raised.value.__cause__ is not None
