"""diff() tells what a step is from how long it took."""

import copy

import pytest

from stepgraph.compiler.explain import (
    Explanation,
    FallbackReport,
    OptimizerReport,
    VariantReport,
)
from stepgraph.errors import ConfigurationError
from stepgraph.profiling import NodeProfile, Profile, Timing
from stepgraph.report import diff


def explanation(**changes):
    variant = VariantReport(
        nodes={"forward": 1, "step": 1},
        operators=12,
        optimizers=(OptimizerReport("Adam(opt)", 4, 100, False, "amsgrad"),),
        capture_ms=1000.0,
        replay_ms=2.0,
        replays=3,
    )
    facts = {
        "name": "step",
        "captured": True,
        "captures": 1,
        "calls": 5,
        "replays": 3,
        "fallback_reason": None,
        "fallbacks": (),
        "variants": (variant,),
        "first_call_ms": 40.0,
    }
    return Explanation(**facts | changes).to_dict()


def profile(**times):
    nodes = tuple(
        NodeProfile(name, kind, "", "a.py:1", times.get(name, Timing(1.0, 0.9, 1.1, 5)), 3, 8, 16)
        for name, kind in (("forward_0", "forward"), ("step", "step"))
    )
    timing = Timing(3.0, 2.9, 3.1, 5)
    return Profile("step", "cpu", 1, timing, timing, timing, nodes, 16, 100, "forward_0").to_dict()


def test_calls_and_times_do_not_make_a_difference_of_facts():
    found = diff(explanation(), explanation(calls=9, replays=7, first_call_ms=1.0))

    assert found.facts == ()
    assert ("first_call", 40.0, 1.0, "single times") in found.times
    assert str(found).startswith("the same but for times")


def test_what_has_changed_is_named_by_its_path():
    after = copy.deepcopy(explanation(captures=2))
    after["variants"][0]["nodes"]["clip"] = 1
    after["variants"][0]["optimizers"][0].update(fused=True, why="")

    found = diff(explanation(), after)

    assert found.facts == (
        ("captures", 1, 2),
        ("variants.0.optimizers.Adam(opt).fused", False, True),
        ("variants.0.optimizers.Adam(opt).why", "amsgrad", ""),
        ("variants.0.nodes.clip", None, 1),
    )
    assert "captures: 1 -> 2" in str(found)
    assert "variants.0.nodes.clip: nothing -> 1" in str(found)


def test_a_new_fallback_is_a_difference_however_often_it_came():
    once, twice = (explanation(fallbacks=(FallbackReport("hooks", None, n, None),)) for n in (1, 2))

    assert diff(explanation(), once).facts == (("fallbacks.hooks.reason", None, "hooks"),)
    assert diff(once, twice).facts == ()


def test_a_time_is_clear_when_the_spreads_do_not_overlap():
    slower, noisy = Timing(2.0, 1.9, 2.1, 5), Timing(2.0, 1.0, 3.0, 5)

    found = diff(profile(), profile(forward_0=slower, step=noisy))

    assert found.facts == ()
    times = {path: (before, after, clear) for path, before, after, clear in found.times}
    assert times["nodes.forward_0"] == (1.0, 2.0, "clear")
    assert times["nodes.step"] == (1.0, 2.0, "within the spread")
    assert times["eager"] == (3.0, 3.0, "within the spread")
    (line,) = [line for line in str(found).splitlines() if "forward_0" in line]
    assert line.endswith("2.00 x")


@pytest.mark.parametrize("other", [{}, [], {"nodes": 1}, profile()])
def test_only_things_of_one_kind_are_compared(other):
    with pytest.raises(ConfigurationError, match="two explanations or two profiles"):
        diff(explanation(), other)
