"""Does this torch behave as capture expects? Asked once, before the first capture."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import FunctionType
from typing import cast

import torch
from torch import Tensor, nn

from stepgraph.capture.capture import capture
from stepgraph.capture.objects.registry import Subjects
from stepgraph.capture.refusal import Refusal
from stepgraph.ir.markers import MARKERS

_EXPECTED = ["zero_grad", "first_grad", "set_grad", "first_grad", "set_grad", "step"]


@dataclass(frozen=True)
class SelfTest:
    """The outcome: whether capture may be used, and why not."""

    passed: bool
    reason: str = ""


@functools.cache
def self_test() -> SelfTest:
    """Capture a step whose graph is known, and look whether torch has kept its word."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()

    subjects = Subjects()
    function = cast(FunctionType, step)
    try:
        captured = capture(function, (torch.ones(3, 2),), {}, subjects=subjects)
    except Refusal as refusal:
        return SelfTest(False, f"the self-test step is refused: {refusal}")
    finally:
        for subject in subjects.all:
            subject.forget()
    markers = [MARKERS[n.target] for n in captured.flat.graph.nodes if n.target in MARKERS]
    if markers != _EXPECTED:
        return SelfTest(False, f"the self-test step was captured as {markers}")
    if "step" in vars(optimizer) or model.weight.grad is not None:
        return SelfTest(False, "the self-test's capture left a trace")
    return SelfTest(True)
