"""Drawn training steps do the same compiled as they do eagerly."""

import functools
import linecache
import types
from collections import deque

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as in the programs

import stepgraph
import strategies
from harness import Program, draw, draw_labels, same_as_eager

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


def run(step: strategies.DrawnStep):
    """Compare the two runs of a drawn step; a failure shows its source."""
    try:
        return same_as_eager(lambda: program(step), CALLS)
    except AssertionError as difference:
        raise AssertionError(f"{difference}\n\nin {step}") from None


@pytest.mark.timeout(1200)  # a failure is shrunk before it is shown
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # a schedule before its step
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strategies.training_steps())
def test_a_drawn_step_is_the_same_compiled(step):
    run(step)


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
