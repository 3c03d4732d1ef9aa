"""Check once, before the first capture, that this version of torch can be captured."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import FunctionType
from typing import cast

import torch
from torch import Tensor, nn

from stepgraph.capture.capture import capture
from stepgraph.capture.objects import TrackedObjects
from stepgraph.capture.refusal import Refusal
from stepgraph.effects import FIRST_GRAD, SET_GRAD, STEP, ZERO_GRAD, effect_of

_EXPECTED = [ZERO_GRAD, FIRST_GRAD, SET_GRAD, FIRST_GRAD, SET_GRAD, STEP]


@dataclass(frozen=True)
class SelfTest:
    """The result: whether capture may be used, and if not, why."""

    passed: bool
    reason: str = ""


@functools.cache
def self_test() -> SelfTest:
    """Capture a step whose graph is known, and compare."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()

    objects = TrackedObjects()
    function = cast(FunctionType, step)
    try:
        captured = capture(function, (torch.ones(3, 2),), {}, objects=objects)
    except Refusal as refusal:
        return SelfTest(False, f"the self-test step is refused: {refusal}")
    finally:
        for tracked in objects.all:
            tracked.forget()
    found = [effect_of(node.target) for node in captured.flat.graph.nodes]
    effects = [effect for effect in found if effect is not None]
    if effects != _EXPECTED:
        names = [effect.name for effect in effects]
        return SelfTest(False, f"the self-test step was captured as {names}")
    if "step" in vars(optimizer) or model.weight.grad is not None:
        return SelfTest(False, "the self-test's capture changed its objects")
    return SelfTest(True)
