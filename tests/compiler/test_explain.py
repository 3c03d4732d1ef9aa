"""explain() says at any time what is captured, and why not where it is not."""

import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from harness import mlp, regression, warnings_of
from stepgraph.errors import CaptureError, GuardError, StepgraphError


class World:
    def __init__(self):
        torch.manual_seed(0)
        self.net = mlp()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.head = torch.optim.AdamW([self.net[2].bias], lr=0.01)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.opt, 2)
        self.calls = []

    def train(self, x, y):
        self.opt.zero_grad()
        loss = functional.mse_loss(self.net(x), y)
        loss.backward()
        self.opt.step()
        self.head.step()
        self.schedule.step()
        return loss

    def branching(self, x, y):
        loss = functional.mse_loss(self.net(x), y)
        if loss > 1:
            loss = loss / 2
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss

    def sometimes_branching(self, x, y, check):
        loss = functional.mse_loss(self.net(x), y)
        if check and loss > 1:
            loss = loss / 2
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss


def compiled(method, calls, **options):
    step = stepgraph.compile(method, **{"on_fallback": "silent"} | options)
    for index in range(calls):
        step(*regression(index))
    return step


def facts(step):
    found = step.explain()
    return found.captured, found.captures, found.calls, found.replays, found.fallback_reason


def test_each_of_the_first_calls_is_explained():
    step = stepgraph.compile(World().train)

    assert facts(step) == (False, 0, 0, 0, None)
    assert step.explain().first_call_ms is None
    step(*regression(0))
    assert facts(step) == (False, 0, 1, 0, None)
    assert step.explain().first_call_ms > 0
    step(*regression(1))
    assert facts(step) == (False, 1, 2, 0, None)
    step(*regression(2))
    assert facts(step) == (True, 1, 3, 1, None)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_it_prints_itself_at_any_time(calls):
    step = compiled(World().train, calls)

    text = str(step.explain())

    assert "train" in text
    assert ("captured" in text) or calls < 3
    assert text == str(step.explain())


def test_a_captured_step_is_told_in_the_words_of_training():
    text = str(compiled(World().train, 4).explain())

    for words in ["1 forward", "1 backward", "1 zero_grad", "2 step", "lr_step", "SGD", "AdamW"]:
        assert words in text
    assert "not fused" in text
    assert "not comparable" in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120


def test_a_variant_counts_its_nodes_and_names_its_optimizers():
    explanation = compiled(World().train, 4).explain()

    (variant,) = explanation.to_dict()["variants"]

    assert len(explanation.variants) == explanation.captures == 1
    expected = {"forward": 1, "backward": 1, "zero_grad": 1, "step": 2, "lr_step": 1}
    assert expected.items() <= variant["nodes"].items()
    sgd, adamw = variant["optimizers"]
    assert (sgd["label"], sgd["tensors"], sgd["elements"]) == ("SGD(opt)", 4, 37)
    assert (adamw["label"], adamw["tensors"], adamw["elements"]) == ("AdamW(head)", 1, 2)
    assert not sgd["fused"]
    assert sgd["why"]
    assert variant["replays"] == 2
    assert variant["capture_ms"] > variant["replay_ms"] > 0


@pytest.mark.parametrize("method", ["train", "branching"])
@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_it_becomes_plain_data(method, calls):
    explanation = compiled(getattr(World(), method), calls).explain()

    data = explanation.to_dict()

    assert json.dumps(data)
    assert data["captured"] is explanation.captured
    assert data["captures"] == explanation.captures
    assert data["fallback_reason"] == explanation.fallback_reason
    assert len(data["variants"]) == len(explanation.variants)
    assert len(data["fallbacks"]) == len(explanation.fallbacks)


def test_its_plain_data_are_dicts_and_lists():
    data = compiled(World().train, 3).explain().to_dict()

    assert json.loads(json.dumps(data)) == data


def test_it_is_a_record_that_later_calls_do_not_change():
    step = compiled(World().train, 2)
    before, text = step.explain(), str(step.explain())

    step(*regression(2))

    assert not before.captured
    assert str(before) == text
    with pytest.raises(AttributeError):
        before.captured = True


def test_a_fallback_gives_the_reason_the_line_and_a_count():
    step = compiled(World().branching, 6)
    explanation = step.explain()

    assert facts(step)[:4] == (False, 0, 6, 0)
    assert explanation.fallback_reason
    (fallback,) = explanation.to_dict()["fallbacks"]
    assert 5 in fallback.values()
    text = str(explanation)
    assert explanation.fallback_reason in text
    assert "test_explain.py:" in text
    assert "5" in text


def test_a_fallback_beside_variants_leaves_the_step_captured():
    step = stepgraph.compile(World().sometimes_branching, on_fallback="silent")
    for index in range(10):
        step(*regression(index), index in (5, 6))

    assert step.explain().captured
    assert step.explain().captures == 1
    assert step.explain().fallback_reason
    assert sum(report["count"] for report in step.explain().to_dict()["fallbacks"]) == 2


def two_reasons(**options):
    """A step that fell back for a branch, then for a hook, each twice."""
    world = World()
    step = stepgraph.compile(world.sometimes_branching, **options)
    for index in range(3):
        step(*regression(index), False)
    for index in range(2):
        step(*regression(index), True)
    handle = world.net[0].weight.register_hook(lambda grad: grad)
    for index in range(2):
        step(*regression(index), False)
    handle.remove()
    return step


def test_two_reasons_are_both_kept_and_the_latest_is_named():
    explanation = two_reasons(on_fallback="silent").explain()

    assert "hook" in explanation.fallback_reason
    branch, hook = explanation.to_dict()["fallbacks"]
    assert "branch" in branch["reason"]
    assert "hook" in hook["reason"]
    assert (branch["count"], hook["count"]) == (2, 2)


def test_a_warning_is_given_once_for_each_reason():
    with warnings_of(Warning) as found:
        two_reasons(on_fallback="warn")

    branch, hook = (str(one.message) for one in found)
    assert "sometimes_branching" in branch
    assert "hook" in hook


def test_a_warning_points_at_the_callers_file():
    with warnings_of(Warning) as found:
        step = stepgraph.compile(World().branching)
        step(*regression(0))
        step(*regression(1))

    assert found[0].filename == __file__


def test_silent_is_silent(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(World().branching, 4)

    assert capfd.readouterr() == ("", "")


def state(world):
    return [
        *(p.detach().clone() for p in world.net.parameters()),
        *(p.grad.clone() for p in world.net.parameters() if p.grad is not None),
        *(v.clone() for s in world.opt.state.values() for v in s.values()),
        torch.get_rng_state(),
    ]


REFUSED = {
    "a branch": (World.branching, lambda world: None),
    "a hook": (World.train, lambda world: world.net[0].weight.register_hook(lambda g: g * 2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_comes_before_anything_has_changed(name):
    method, prepare = REFUSED[name]
    world = World()
    step = stepgraph.compile(lambda x, y: method(world, x, y), on_fallback="error")
    step(*regression(0))
    prepare(world)
    before, epoch = state(world), world.schedule.last_epoch

    with pytest.raises(CaptureError) as caught:
        step(*regression(1))

    assert all(map(torch.equal, before, state(world)))
    assert world.schedule.last_epoch == epoch
    assert step.explain().fallback_reason
    assert step.explain().fallback_reason.split(" (")[0] in str(caught.value)


def test_an_error_after_the_capture_comes_before_anything_has_changed():
    world = World()
    step = compiled(world.train, 4, on_fallback="error")
    handle = world.net[0].weight.register_hook(lambda grad: world.calls.append(1))
    before, epoch = state(world), world.schedule.last_epoch

    with pytest.raises(CaptureError, match="hook"):
        step(*regression(4))

    assert all(map(torch.equal, before, state(world)))
    assert world.schedule.last_epoch == epoch
    assert not world.calls
    handle.remove()
    step(*regression(5))
    assert step.explain().replays == 3


def test_an_error_repeats_in_every_refused_call():
    world = World()
    step = compiled(world.branching, 1, on_fallback="error")

    for index in range(3):
        with pytest.raises(CaptureError):
            step(*regression(index))

    assert step.explain().calls >= 1
    assert step.eager(*regression(0)) is not None


def test_an_error_message_answers_the_five_questions():
    step = compiled(World().branching, 1, on_fallback="error")

    with pytest.raises(CaptureError) as caught:
        step(*regression(1))

    lines = str(caught.value).splitlines()
    assert "branching" in lines[0]
    names = [line.split()[0] for line in lines[1:] if line.startswith("  ") and line[2] != " "]
    assert names == [name for name in ("at", "found", "why", "try") if name in names]
    assert {"at", "why", "try"} <= set(names)
    assert "test_explain.py:" in str(caught.value)


def test_variants_exhausted_under_error_raise_a_guard_error(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "1")
    world = World()
    step = compiled(world.train, 3, on_fallback="error")
    world.net[1] = nn.ReLU()
    before = state(world)

    with pytest.raises(StepgraphError) as caught:
        step(*regression(3))

    assert isinstance(caught.value, GuardError)
    assert "variant" in str(caught.value)
    assert all(map(torch.equal, before, state(world)))


def test_graphs_are_those_of_the_variants():
    step = compiled(World().train, 0)
    assert step.graphs == ()
    for index in range(4):
        step(*regression(index))

    (graph,) = step.graphs
    assert isinstance(graph, stepgraph.StepGraph)
    assert len(step.captured_graphs) == 1
    assert "step" in str(graph)
    graph.verify()


def test_values_are_called_what_the_user_calls_them():
    world = World()

    def step(x, labels):
        output = world.net(x)
        loss = functional.cross_entropy(output, labels)
        hits = (output.argmax(1) == labels).sum()
        world.opt.zero_grad()
        loss.backward()
        world.net(x).square().mean().backward()
        world.opt.step()
        return hits

    compiled = stepgraph.compile(step, on_fallback="error")
    for index in range(2):
        compiled(regression(index)[0], torch.zeros(6, dtype=torch.long))

    text = str(compiled.graphs[0])
    assert "-> loss " in text
    assert "d loss / d (" in text
    assert "-> mean " in text
    assert "d mean / d (" in text


def test_a_disabled_library_runs_eagerly_and_says_so(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "1")

    step = compiled(World().train, 4)

    assert not step.explain().captured
    assert "STEPGRAPH_DISABLE" in step.explain().fallback_reason


def test_a_compiled_step_looks_like_the_function_it_wraps():
    def step(x, y, *, scale=1.0):
        """Trains."""
        return x

    wrapped = stepgraph.compile(step)

    assert wrapped.__name__ == "step"
    assert wrapped.__doc__ == "Trains."
    assert wrapped.__wrapped__ is step
    assert wrapped.__module__ == __name__
