"""Whole compiled steps on a GPU, against the plain step on a twin. `make gpu` runs them."""

import copy

import pytest
import torch
from torch import nn

from support.paired_training import Training

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # a compiler's and a driver's own
]
TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}


@pytest.fixture(autouse=True)
def _recorded(monkeypatch):
    monkeypatch.setenv("STEPGRAPH_CUDA_GRAPHS", "1")


def twin(*, dropout=0.0, **options):
    torch.manual_seed(0)
    layers = nn.Linear(64, 128), nn.Dropout(dropout), nn.Tanh(), nn.Linear(128, 8)
    return Training(nn.Sequential(*layers).cuda(), lr=1e-3, clip=0.1, **options)


def batches(count):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(16, 64, generator=generator).cuda() for _ in range(count)]


def assert_close(mine, own):
    for ours, theirs in zip(mine, own, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), **TOLERANCE)


def params(training):
    return list(training.model.parameters())


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_a_caller_keeps_over_ten_calls_differs_as_in_eager(backend, dropout):
    mine, own = twin(backend=backend, dropout=dropout), twin(dropout=dropout)
    inputs = batches(16)

    losses, gradients = mine.run(mine.compiled, inputs)
    wanted, wanted_gradients = own.run(own.step, inputs)

    assert len({float(loss) for loss in losses[-10:]}) == 10
    assert_close(losses, wanted)
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        assert_close(ours, theirs)
    assert_close(params(mine), params(own))


def test_a_plain_step_is_recorded_once_although_a_schedule_runs():
    mine = twin(backend="inductor")

    mine.run(mine.compiled, batches(12))

    (variant,) = mine.compiled.explain().variants
    assert variant.cuda_graph == "recorded"
    assert variant.optimizers[0].fused


def test_gradients_that_accumulate_are_not_overwritten():
    mine, own = (twin(backend=b, accumulate=3) for b in ("inductor", "eager"))
    inputs = batches(30)

    losses, _ = mine.run(mine.compiled, inputs)
    wanted, _ = own.run(own.compiled, inputs)

    assert [v.cuda_graph for v in mine.compiled.explain().variants] == ["recorded"] * 3
    assert_close(losses, wanted)
    assert_close(params(mine), params(own))


def test_loaded_state_is_used():
    mine, own = twin(backend="inductor"), twin()
    inputs = batches(20)
    for training, call in ((mine, mine.compiled), (own, own.step)):
        training.run(call, inputs[:10])
    saved = copy.deepcopy(own.optimizer.state_dict())

    for training, call in ((mine, mine.compiled), (own, own.step)):
        training.optimizer.load_state_dict(copy.deepcopy(saved))
        training.run(call, inputs[10:])

    assert_close(params(mine), params(own))


def test_float16_with_a_scaler_leaves_what_eager_leaves():
    mine = twin(backend="inductor", precision="16-mixed")
    own = twin(backend="eager", precision="16-mixed")
    inputs = batches(12)

    losses, _ = mine.run(mine.compiled, inputs)
    wanted, _ = own.run(own.compiled, inputs)

    for ours, theirs in zip(losses, wanted, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=2e-2, atol=1e-3)
    (variant,) = mine.compiled.explain().variants
    assert "a loss scaler's own code runs" in variant.cuda_graph
