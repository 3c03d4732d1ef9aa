"""The statements of a program."""

import math

import torch
from torch import nn

import stepgraph


def test_a_number_known_when_captured_is_logged_as_it_is():
    model, values = nn.Linear(2, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @stepgraph.compile(backend="eager", on_fallback="error")
    def step(x):
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        for number in (7, -0.5, math.inf, 2**60 + 1):
            values.append(number)
        values.append(loss.detach())

    for _ in range(3):
        values.clear()
        step(torch.ones(3, 2))

    assert step.explain().captured
    assert values[:4] == [7, -0.5, math.inf, 2**60 + 1]
    assert [type(value) for value in values[:4]] == [int, float, float, int]
    assert isinstance(values[4], torch.Tensor)
    (variant,) = step._variants
    assert "scalar_tensor" not in variant.source


def test_a_number_that_changes_is_read_at_every_call():
    model, values = nn.Linear(2, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    @stepgraph.compile(backend="eager", on_fallback="error")
    def step(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        scheduler.step()
        values.append(optimizer.param_groups[0]["lr"])

    for _ in range(4):
        step(torch.ones(3, 2))

    assert step.explain().captured
    assert values == [0.05, 0.025, 0.0125, 0.00625]
