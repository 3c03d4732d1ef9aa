"""An effect and an object that the library has never heard of, registered here."""

import pytest
import torch
from torch import Tensor, nn

import stepgraph
from stepgraph.capture import TrackedObject, entry_name, number_of, track
from stepgraph.effects import Effect, Kind, RestoreObject, object_state, register, without_result


class Meter:
    """A running mean, as people write it."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, value):
        self.total += float(value)
        self.count += 1


@torch.library.custom_op("stepgraph_tests::meter_update", mutates_args=())
def meter_update(value: Tensor, subject: int) -> None:
    """Run `meter.update(value)`."""


without_result(meter_update)
OP = torch.ops.stepgraph_tests.meter_update


def run_update(value, subject):
    subject.update(value)


METER_UPDATE = register(
    Effect(
        op=OP.default,
        kind=Kind.OTHER,
        says=lambda words: f"{words.value('value')} into {words.label}",
        reads=(object_state("meter"),),
        writes=(object_state("meter"),),
        region="waits",
        cuda_graph="tail",
        may_raise=True,
        run=run_update,
        rehearsal=RestoreObject("update"),
        short_window="skipped",
        moves={},
        launches=False,
        values_read=("value",),
        hands_out=("value",),
        detaches=True,
    )
)


class TrackedMeter(TrackedObject):
    def stand_ins(self, context):
        name = entry_name(self.number)

        def update(value):
            OP(value.detach(), number_of(name))

        return {"update": update}

    def may_rehearse(self):
        return True


track(Meter, TrackedMeter)


class World:
    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.meter = Meter()

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        self.meter.update(loss)
        return loss

    def state(self):
        weights = [p.detach().clone() for p in self.net.parameters()]
        return weights, self.meter.total, self.meter.count


def batches(count):
    torch.manual_seed(1)
    return [(torch.randn(6, 4), torch.randn(6, 1)) for _ in range(count)]


@pytest.fixture
def trained():
    """Two worlds after the same batches, one of them compiled; the compiled step."""
    eager, compiled = World(), World()
    step = stepgraph.compile(on_fallback="error", backend="eager")(compiled.step)
    for batch in batches(5):
        eager.step(*batch)
        step(*batch)
    return eager, compiled, step


def test_it_is_captured_and_replayed_as_eager_runs_it(trained):
    eager, compiled, step = trained

    assert step.explain().replays == 3
    for mine, theirs in zip(compiled.state()[0], eager.state()[0], strict=True):
        assert torch.equal(mine, theirs)
    assert compiled.state()[1:] == eager.state()[1:]


def test_a_rehearsal_takes_it_back():
    world = World()
    step = stepgraph.compile(on_fallback="error", backend="eager", verify=2)(world.step)
    for batch in batches(5):
        step(*batch)

    assert world.meter.count == 5


def test_it_is_printed_and_coloured(trained):
    *_, step = trained
    (graph,) = step.graphs

    assert "other        loss into Meter(meter)" in " ".join(str(graph).split()) or (
        "loss into Meter(" in str(graph)
    )
    assert graph.count()[Kind.OTHER] == 1
    assert "other" in graph.to_dot()
    assert Kind.OTHER.colour == "#7d8f69"


def test_it_keeps_its_order_and_is_never_lost(trained):
    *_, step = trained
    (graph,) = step.graphs
    (node,) = [node for node in graph.nodes if graph.kind(node) is Kind.OTHER]

    assert any(name.startswith("meter:Meter(") for name in graph.writes(node))
    graph.verify(step.captured_graphs[0])


def test_a_program_that_forgets_it_is_found_out(monkeypatch):
    world = World()
    step = stepgraph.compile(on_fallback="silent", backend="eager")(world.step)
    monkeypatch.setattr(METER_UPDATE.run, "__code__", (lambda value, subject: None).__code__)
    for batch in batches(4):
        step(*batch)

    assert "differs from eager at" in step.explain().fallback_reason
    assert world.meter.count == 4


def test_with_inductor_it_waits_for_the_end_of_the_region(trained):
    eager = World()
    compiled = World()
    step = stepgraph.compile(on_fallback="error", backend="inductor")(compiled.step)
    for batch in batches(5):
        eager.step(*batch)
        step(*batch)

    assert compiled.meter.count == eager.meter.count
    assert compiled.meter.total == pytest.approx(eager.meter.total, rel=1e-5)
