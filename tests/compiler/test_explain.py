"""explain() says at any time what is captured, and why not where it is not."""

import dataclasses
import json
import warnings

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

import stepgraph
from stepgraph.compiler.explain import OptimizerReport, RegionReport, VariantReport, variant_lines
from stepgraph.errors import CaptureError, GuardError, StepgraphError
from stepgraph.passes import PassRecord, WaitFor
from support.harness import mlp, regression, warnings_of


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


def test_a_variant_is_told_in_one_sentence():
    (variant,) = compiled(World().train, 4).explain().variants

    assert variant.sentence == (
        "captured whole: 1 forward, 1 backward, SGD(opt, 4 tensors) and AdamW(head, 1 tensor) "
        "not fused: the eager backend runs the optimizer's own step()"
    )


def test_a_region_says_how_it_is_run():
    eager = RegionReport(3, False, "no C++ compiler")
    by_kernel = RegionReport(4, True, "", "a kernel with 513 arguments")

    assert eager.how == "eager: no C++ compiler"
    assert by_kernel.how == "compiled, kernel by kernel: a kernel with 513 arguments"
    assert RegionReport(5, True, "").how == "compiled"


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_update_says_whose_kernels_run_it():
    step = compiled(World().train, 4, backend="inductor")

    notes = [optimizer.note for optimizer in step.explain().variants[0].optimizers]

    assert notes == ["in stepgraph's own kernels"] * 2


def test_passes_say_what_they_removed_and_did():
    optimizers = (OptimizerReport("Adam(opt)", 4, 100, True, ""),)
    removed = PassRecord("Drop()", 1.0, 9, 8, 55, 46, 1200, ("grad:a.w",), 3, 104_588)
    moved = PassRecord("Early()", 1.0, 8, 8, 46, 46, did=("early update 3 of 4",))
    idle = PassRecord("Idle()", 1.0, 8, 8, 46, 46)
    nodes = {"forward": 1, "backward": 2, "step": 1}

    variant = VariantReport(nodes, 46, optimizers, 1.0, 2.0, 1, (removed, moved, idle))

    assert variant.sentence == (
        "captured whole: 1 forward, 2 backward, Adam(opt, 4 tensors) fused; removed 9 operators; "
        "early update 3 of 4"
    )
    assert variant_lines(variant)[4:7] == [
        "Drop(): 9 -> 8 nodes; 55 -> 46 operators; -3 launches; -102.1 KiB moved; "
        "-1,200 floating-point operations; not computed: gradients of a.w",
        "Early(): early update 3 of 4",
        "nothing to do for Idle()",
    ]


def test_each_variant_of_a_window_says_which_calls_it_is_for():
    world = World()

    def step(x, y):
        world.opt.zero_grad()
        functional.mse_loss(world.net(x), y).backward()
        world.opt.step()

    step = compiled(step, 7, accumulate=3)

    explanation = step.explain()

    assert {variant.place for variant in explanation.variants} == {
        "the first call of a window of 3",
        "the calls in the middle of a window of 3",
        "the last call of a window of 3",
    }
    updating = [v.place for v in explanation.variants if v.optimizers]
    assert updating == ["the last call of a window of 3"]
    assert explanation.options == {"on_fallback": "silent", "accumulate": 3}
    assert "accumulate=3" in str(explanation)


def test_advice_is_about_what_this_step_could_change():
    world = World()
    world.opt = torch.optim.SGD(world.net.parameters(), lr=0.1, foreach=True)
    world.schedule = torch.optim.lr_scheduler.StepLR(world.opt, 2)

    explanation = compiled(world.train, 3).explain()

    backend, foreach = explanation.advice
    assert backend.what.startswith('backend="eager" calls ')
    assert "runs AdamW(head) in fused kernels" in backend.hint
    assert foreach.what.startswith("SGD(opt) (4 tensors) cannot be fused")
    assert foreach.hint == "leave foreach and fused at their defaults"
    assert foreach.hint in str(explanation)
    assert explanation.to_dict()["advice"][1] == {"what": foreach.what, "hint": foreach.hint}


def test_what_updates_wait_for_is_advice():
    said = ("early update 121 of 148 (27 wait for: gradient norm)",)
    reasons = (WaitFor.GRADIENT_NORM,)
    record = PassRecord("EarlyUpdate()", 1.0, 8, 8, 46, 46, did=said, reasons=reasons)
    variant = VariantReport({"step": 1}, 46, (), 1.0, 2.0, 1, (record,), backend="inductor")
    found = stepgraph.Explanation("step", True, 1, 3, 1, None, (), (variant,), 1.0)

    graph = compiled(World().train, 2).graphs[0]
    found = dataclasses.replace(found, graphs=((graph, graph),), options={"keep_grads": False})

    (norm,) = found.advice
    assert norm.what == "updates wait for the norm of all gradients"
    assert said[0] in variant.sentence


def test_gradients_that_are_cleared_unread_are_advice_unless_they_are_dropped_already():
    world = World()

    def step(x, y):
        world.opt.zero_grad()
        functional.mse_loss(world.net(x), y).backward()
        world.opt.step()
        world.net(x).mean().backward()  # nobody reads these

    (_, dead) = compiled(step, 3).explain().advice
    dropping = compiled(step, 3, keep_grads=False).explain()

    assert "net.0.weight, world.net.0.bias, ... (4 in all)" in dead.what
    forward, backward = 4 * 5 + 5 * 2, (4 * 5 + 5 * 2) + 5 * 2  # per sample; none for the batch
    share = backward / (2 * (forward + backward))
    assert f"keep_grads=False: saves {share:.0%} of all products" in dead.hint
    assert all("keep_grads" not in one.hint for one in dropping.advice)


def test_a_terminal_shows_colours_and_the_step_graph():
    console = Console(width=120, force_terminal=True, color_system="truecolor", record=True)

    console.print(compiled(World().train, 4).explain())

    plain = console.export_text(clear=False)
    assert "captured whole, 1 variant" in plain
    assert "d loss / d (net.2.bias, net.2.weight" in plain
    assert "-> loss  [6 ops]  reads" in plain  # brackets are no markup of rich's
    assert "to get more" in plain
    assert "38;2;" in console.export_text(styles=True)


def test_a_terminal_shows_why_a_step_is_eager():
    console = Console(width=200, record=True)

    console.print(compiled(World().branching, 3).explain())

    plain = console.export_text()
    assert "runs eagerly" in plain
    assert "test_explain.py:" in plain
    assert "try torch.where" in plain


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


def test_two_reasons_are_both_kept_and_the_latest_is_named(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_CAPTURE_FAILURES", "8")  # each reason is found twice
    explanation = two_reasons(on_fallback="silent").explain()

    assert "hook" in explanation.fallback_reason
    branch, hook = explanation.to_dict()["fallbacks"]
    assert "branch" in branch["reason"]
    assert "hook" in hook["reason"]
    assert (branch["count"], hook["count"]) == (2, 2)


def test_a_warning_is_given_once_for_each_reason(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_CAPTURE_FAILURES", "8")  # each reason is found twice
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


def test_the_limit_of_variants_is_advice(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_MAX_VARIANTS", "1")
    world = World()
    step = compiled(world.train, 3)
    world.net[1] = nn.ReLU()
    step(*regression(3))

    explanation = step.explain()

    assert [one.at_variant_limit for one in explanation.fallbacks] == [True]
    assert explanation.advice[-1].what == "1 variants are the limit, and this step has more"


def test_values_behind_sentences_are_not_in_the_dict():
    explanation = compiled(World().train, 3).explain()
    (variant,) = explanation.to_dict()["variants"]

    assert explanation.variants[0].optimizers[0].misfit == ""
    assert explanation.variants[0].optimizers[0].obstacle is None
    assert "obstacle" not in variant["optimizers"][0]
    assert "reasons" not in variant["passes"][0]
    assert json.loads(json.dumps(variant)) == variant


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
