"""profile() measures a step for real, and leaves no trace of it."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import stepgraph
from stepgraph.errors import ConfigurationError
from stepgraph.passes import DropReadGradients, EarlyUpdate, Pipeline
from stepgraph.profiling.clock import clock_for
from support.harness import mlp, regression
from support.state_walk import Walk

IN, HIDDEN, OUT, BATCH = 4, 5, 2, 6  # of mlp() and regression()


class World:
    def __init__(self):
        torch.manual_seed(0)
        self.net = mlp()
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.opt, 0.1, total_steps=4)
        self.seen = []

    def train(self, x, y):
        self.opt.zero_grad()
        loss = functional.mse_loss(functional.dropout(self.net(x), 0.1), y)
        loss.backward()
        self.opt.step()
        self.schedule.step()
        self.seen.append(loss.detach())
        return loss


class Plain:
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
def profiled():
    """A step that has been profiled for two calls, and its profile."""
    step = stepgraph.compile(Plain().train, on_fallback="error")
    return step, step.profile(*regression(0), steps=2)


def test_profiling_leaves_everything_as_it_was():
    profiled, twin = World(), World()
    for world in (profiled, twin):
        world.step = stepgraph.compile(world.train, on_fallback="error")
        torch.manual_seed(1)
        for index in range(3):
            world.step(*regression(index))
    rng = torch.get_rng_state()

    found = profiled.step.profile(*regression(3), steps=3)  # the schedule allows one more step

    assert found.warm_up_calls == 0
    assert torch.equal(torch.get_rng_state(), rng)
    ours, theirs = dict(vars(profiled)), dict(vars(twin))
    steps = ours.pop("step"), theirs.pop("step")
    Walk().compare("world", theirs, ours)
    counts = [(s.explain().calls, s.explain().replays, s.explain().captures) for s in steps]
    assert counts[0] == counts[1] == (3, 1, 1)
    after = [step(*regression(3)) for step in steps if torch.manual_seed(2)]
    assert torch.equal(*after)


def test_the_nodes_are_those_of_the_step_graph_in_order(profiled):
    step, found = profiled

    names = [node.name for node in found.nodes]
    assert names == ["zero_grad", "forward_0", "backward_0", "accumulate_0", "step"]
    assert [node.kind for node in found.nodes] == [name.removesuffix("_0") for name in names]
    assert found.nodes[-1].label == "SGD(opt)"
    assert all("test_profile.py:" in node.at for node in found.nodes)
    operators = step.explain().variants[0].operators
    assert sum(node.operators for node in found.nodes) == operators


def test_operations_and_bytes_are_those_a_person_counts(profiled):
    _, found = profiled
    nodes = {node.name: node for node in found.nodes}

    products = 2 * BATCH * (IN * HIDDEN + HIDDEN * OUT)
    assert nodes["forward_0"].flops == products
    assert nodes["backward_0"].flops == products + 2 * BATCH * HIDDEN * OUT  # no d loss / d x
    assert found.flops == nodes["forward_0"].flops + nodes["backward_0"].flops
    n_params = IN * HIDDEN + HIDDEN + HIDDEN * OUT + OUT
    assert nodes["step"].bytes_moved == 3 * 4 * n_params  # reads both, writes parameters
    forward = (
        (BATCH * IN + IN * HIDDEN + HIDDEN + BATCH * HIDDEN)  # x w + b
        + 2 * BATCH * HIDDEN  # tanh
        + (BATCH * HIDDEN + HIDDEN * OUT + OUT + BATCH * OUT)
    )
    loss = 2 * BATCH * OUT + 1  # the mean squared error reads both and writes a number
    assert nodes["forward_0"].bytes_moved == 4 * (forward + loss)


def test_every_call_is_in_the_trace_and_nodes_lie_in_calls(profiled, tmp_path):
    _, found = profiled

    found.to_chrome_trace(tmp_path / "trace.json")

    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(rows.values()) == [
        "eager", "compiled", "compiled, node by node", "compiled, operator by operator"
    ]  # fmt: skip
    spans = [event for event in events if event["ph"] == "X"]
    calls = [span for span in spans if span["cat"] == "call"]
    assert [span["tid"] for span in calls] == [0, 0, 1, 1, 2, 2, 3, 3]
    nodes = [span for span in spans if span["cat"] != "call" and span["tid"] == 2]
    assert [span["name"] for span in nodes[:5]] == [
        "zero_grad SGD(opt)", "forward_0", "backward_0", "accumulate_0", "step SGD(opt)"
    ]  # fmt: skip
    for node in nodes:
        around = [c for c in calls if c["tid"] == 2 and c["ts"] <= node["ts"]][-1]
        assert node["ts"] + node["dur"] <= around["ts"] + around["dur"]
    operators = [span["name"] for span in spans if span["tid"] == 3 and span["cat"] != "call"]
    assert operators[: len(operators) // 2].count("aten.addmm") == 2


def test_the_operators_of_a_step_are_counted_with_what_they_move(profiled):
    _, found = profiled
    operators = {one.name: one for one in found.operators}

    addmm = operators["aten.addmm"]
    assert addmm.launches == 2
    assert addmm.nodes == ("forward_0",)
    inputs = BATCH * IN + IN * HIDDEN + HIDDEN, BATCH * HIDDEN + HIDDEN * OUT + OUT
    results = BATCH * HIDDEN, BATCH * OUT
    assert addmm.bytes_moved == 4 * (sum(inputs) + sum(results))
    assert addmm.gbps == pytest.approx(addmm.bytes_moved / addmm.time.median_ms / 1e6)
    assert sum(one.flops for one in found.operators) == found.flops
    assert operators["step SGD(opt)"].nodes == ("step",)
    times = [one.time.median_ms for one in found.operators]
    assert times == sorted(times, reverse=True)
    assert found.copy_gbps > 0


def test_every_typed_node_is_in_one_node_of_the_profile():
    world = Plain()
    world.net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)], nn.Linear(4, 2))
    world.opt = torch.optim.AdamW(world.net.parameters())
    passes = Pipeline((DropReadGradients(), EarlyUpdate(bucket_bytes=65)))
    step = stepgraph.compile(world.train, passes=passes, keep_grads=False, on_fallback="error")

    found = step.profile(*regression(0), steps=1)

    (graph,) = step.graphs
    covered = [name for node in found.nodes for name in node.covers]
    typed = [node.name for node in graph.nodes if graph.kind(node) is not None]
    assert len(graph.count()) > 3
    assert sum(node.kind == "step" for node in found.nodes) > 1  # updates between backwards
    assert sorted(covered) == sorted(typed)


def test_launches_are_counted_inside_of_optimizers_too(profiled):
    _, found = profiled
    nodes = {node.name: node for node in found.nodes}

    assert nodes["forward_0"].launches == 4  # two products, tanh, the loss
    assert nodes["zero_grad"].launches == nodes["accumulate_0"].launches == 0
    assert nodes["step"].launches == 4  # SGD on a CPU goes through its parameters one by one
    assert found.launches == sum(node.launches for node in found.nodes)
    assert found.eager_launches >= found.launches


def test_a_profile_prints_itself_and_goes_into_json(profiled):
    _, found = profiled

    printed = str(found)
    assert "times the speed of eager" in printed
    assert "warm-up      2 calls, which trained" in printed
    assert all(node.name in printed for node in found.nodes)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["nodes"][1]["name"] == "forward_0"
    assert plain["compiled"]["calls"] == 2
    assert "spans" not in plain


def test_a_call_of_a_window_is_profiled_where_it_stands():
    world = Plain()
    step = stepgraph.compile(world.train, accumulate=2, on_fallback="error")
    for index in range(7):
        step(*regression(index))
    weight = world.net[0].weight.detach().clone()

    last = step.profile(*regression(0), steps=1)

    assert step.state_dict()["position"] == 1
    assert torch.equal(world.net[0].weight, weight)
    assert last.place == "2 of 2"
    assert last.nodes[-1].kind == "step"
    step(*regression(7))
    first = step.profile(*regression(0), steps=1)
    assert first.place == "1 of 2"
    assert "step" not in [node.kind for node in first.nodes]


def test_replays_that_would_be_verified_are_profiled_as_replays():
    step = stepgraph.compile(Plain().train, verify=5, on_fallback="error")
    for index in range(3):
        step(*regression(index))

    found = step.profile(*regression(3), steps=1)

    assert len(found.nodes) == 5
    assert step.explain().variants[0].replays == 1


def test_a_step_that_runs_eagerly_has_no_profile():
    world = Plain()

    def step(x, y):
        loss = functional.mse_loss(world.net(x), y)
        if loss > 0:
            loss = loss / 2
        loss.backward()
        world.opt.step()

    compiled = stepgraph.compile(step, on_fallback="silent")

    with pytest.raises(ConfigurationError, match="nothing to profile") as caught:
        compiled.profile(*regression(0))
    assert "loss" in str(caught.value) or "data-dependent" in str(caught.value)


@pytest.mark.parametrize("steps", [0, -1, 2.0, "many"])
def test_steps_must_be_a_number_of_calls(profiled, steps):
    with pytest.raises(ConfigurationError, match="calls to measure"):
        profiled[0].profile(*regression(0), steps=steps)


def test_a_replay_after_profiling_runs_the_program_without_marks(profiled):
    step, _ = profiled
    calls = []
    step._variants[0].program.function = lambda *inputs, was=step._variants[0].program.function: (
        calls.append(1) or was(*inputs)
    )

    step(*regression(1))

    assert calls == [1]


def test_a_model_larger_than_its_batch_peaks_in_its_gradients():
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        opt.zero_grad()
        model(x).sum().backward()
        opt.step()

    found = stepgraph.compile(step, on_fallback="error").profile(torch.randn(1, 100), steps=1)

    gradient = 4 * 100 * 100
    assert gradient <= found.peak_bytes <= gradient + 4 * 400  # and a few vectors
    assert found.peak_at == "backward_0"


def test_compiled_regions_are_nodes_of_the_profile():
    world = Plain()
    step = stepgraph.compile(world.train, backend="inductor", on_fallback="error")

    found = step.profile(*regression(0), steps=1)

    (region,) = [node for node in found.nodes if node.kind == "compiled"]
    assert [node.kind for node in found.nodes] == ["zero_grad", "compiled", "accumulate", "step"]
    assert region.flops == found.flops > 0
    assert 1 <= region.launches < region.operators
    assert "test_profile.py:" in region.at


class Event:
    """Stands in for an event of a device whose clock is a list."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 0.25
        self.at_ms = Event.now

    def elapsed_time(self, other):
        return other.at_ms - self.at_ms


def test_a_device_notes_itself_when_it_comes_to_a_mark(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    clock = clock_for("cuda")

    for index in range(3):
        clock.mark(index)
    assert not waited  # until the times are asked for
    first, second, third = clock.take()

    assert (second - first, third - first) == (250_000, 500_000)
    assert clock.take() == []
