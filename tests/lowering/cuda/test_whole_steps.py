"""Whole steps as CUDA graphs, on a device that re-executes what it records (no GPU needed).

Compute regions stay eager here and updates run in Triton's interpreter, so that results differ
from the plain step by the rounding of the update alone.
"""

import copy
import sys

import pytest
import torch
from torch import nn

import stepgraph
from stepgraph.compiler.variants import cuda_recording, rewrite
from stepgraph.lowering import Unsupported
from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.updates import triton
from stepgraph.runtime import cuda_graph
from support.paired_training import Training
from support.recording_device import RecordingDevice

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # triton 3.6
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/cuda has them for a GPU"),
]


@pytest.fixture
def device(monkeypatch):
    """A recording device in the place of a GPU."""

    def refuse(*_):
        raise Unsupported("stays eager")

    def update(optimizer, masters=None):
        misfit = triton.kernel_misfit(optimizer, interpreted=True)
        return misfit or triton.KernelUpdate(optimizer)

    made = RecordingDevice()
    monkeypatch.setenv("STEPGRAPH_CUDA_GRAPHS", "1")
    monkeypatch.setattr(cuda_recording, "device_of", lambda inputs: torch.device("cpu"))
    monkeypatch.setattr(cuda_recording, "graph_device", lambda device: made)
    monkeypatch.setattr(rewrite, "compile_region", refuse)
    monkeypatch.setattr(sys.modules["stepgraph.lowering.lower"], "fused_update", update)
    return made


def twin(**options):
    torch.manual_seed(0)
    first, last = nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False)
    # few tensors: the interpreter takes long for each
    model = nn.Sequential(first, nn.Dropout(0.2), nn.Tanh(), last)
    return Training(model, lr=0.01, backend="inductor", **options)


def recording_of(training):
    (variant,) = training.compiled._variants
    return variant.recording


def batches(count, rows=3):
    torch.manual_seed(5)
    return [torch.randn(rows, 4) for _ in range(count)]


def agree(mine, own):
    for ours, theirs in zip(mine.model.parameters(), own.model.parameters(), strict=True):
        assert is_close(ours.detach(), theirs.detach())
    assert mine.schedule.last_epoch == own.schedule.last_epoch
    assert mine.optimizer.param_groups[0]["lr"] == own.optimizer.param_groups[0]["lr"]
    for p, q in zip(mine.model.parameters(), own.model.parameters(), strict=True):
        ours, theirs = mine.optimizer.state[p], own.optimizer.state[q]
        assert all(is_close(value, theirs[name]) for name, value in ours.items())


def test_what_a_caller_keeps_over_ten_calls_differs_as_in_eager(device):
    mine, own = twin(clip=0.05), twin(clip=0.05)
    inputs = batches(14)

    losses, gradients = mine.run(mine.compiled, inputs)
    wanted, wanted_gradients = own.run(own.step, inputs)

    assert recording_of(mine).graphed.replays >= 10
    assert str(recording_of(mine)) == "recorded"
    assert device.captures == 1
    assert len({float(loss) for loss in losses[-10:]}) == 10
    for ours, theirs in zip(losses, wanted, strict=True):
        assert is_close(ours, theirs.detach())
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        assert all(map(is_close, ours, theirs))
    assert len({grads[0].data_ptr() for grads in gradients}) == len(gradients)
    agree(mine, own)


def test_what_leaves_a_graph_without_a_copy_would_be_wrong(device, monkeypatch):
    """The test above can fail: this is the corruption it looks for."""
    monkeypatch.setattr(cuda_graph, "_own", list)
    mine, own = twin(), twin()
    inputs = batches(10)

    losses, _ = mine.run(mine.compiled, inputs)
    wanted, _ = own.run(own.step, inputs)

    assert not all(is_close(a, b.detach()) for a, b in zip(losses, wanted, strict=True))


def test_gradients_that_accumulate_over_variants_in_one_pool_are_not_overwritten(device):
    mine, own = twin(accumulate=2, clip=0.05), twin(accumulate=2, clip=0.05)
    inputs = batches(14)

    losses, gradients = mine.run(mine.compiled, inputs)
    own.compiled = stepgraph.compile(own.step, accumulate=2)  # eager backend: the reference
    wanted, wanted_gradients = own.run(own.compiled, inputs)

    recordings = [variant.recording for variant in mine.compiled._variants]
    assert len(recordings) == 2
    assert all(recording.graphed.replays > 0 for recording in recordings)
    assert len(device.pools) == 1
    assert all(map(is_close, losses, [loss.detach() for loss in wanted]))
    assert all(map(is_close, gradients[-1], wanted_gradients[-1]))
    agree(mine, own)


def test_loaded_state_is_used_and_needs_no_new_capture(device):
    mine, own = twin(), twin()
    inputs = batches(14)
    mine.run(mine.compiled, inputs[:6])
    own.run(own.step, inputs[:6])
    saved = copy.deepcopy(own.optimizer.state_dict())

    for training, call in ((mine, mine.compiled), (own, own.step)):
        training.optimizer.load_state_dict(copy.deepcopy(saved))
        training.run(call, inputs[6:])

    assert device.captures == 1
    assert recording_of(mine).graphed.replays > 8
    agree(mine, own)


def test_a_parameter_whose_memory_moved_is_captured_again(device):
    mine, own = twin(), twin()
    inputs = batches(16)
    mine.run(mine.compiled, inputs[:8])
    own.run(own.step, inputs[:8])

    moved = mine.model[0].weight
    moved.data = moved.data.clone()
    mine.run(mine.compiled, inputs[8:])
    own.run(own.step, inputs[8:])

    assert device.captures == 2
    agree(mine, own)


def test_a_capture_that_fails_leaves_the_ordinary_program_and_says_so(device, monkeypatch):
    def fail(work, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(device, "capture", fail)
    mine, own = twin(), twin()
    inputs = batches(10)

    losses, _ = mine.run(mine.compiled, inputs)
    wanted, _ = own.run(own.step, inputs)

    assert all(is_close(a, b.detach()) for a, b in zip(losses, wanted, strict=True))
    assert "CUDA graph: none: the capture fails: RuntimeError" in str(mine.compiled.explain())
    agree(mine, own)


def test_an_optimizer_without_a_kernel_is_the_reason_for_no_graph(device):
    mine = twin()
    mine.optimizer = torch.optim.Rprop(mine.model.parameters())
    mine.schedule = torch.optim.lr_scheduler.StepLR(mine.optimizer, 1)

    mine.run(mine.compiled, batches(4))

    (variant,) = mine.compiled.explain().variants
    assert "runs its own code: no Triton kernel for Rprop" in variant.cuda_graph
    assert device.captures == 0


def test_hooks_that_come_later_run(device):
    mine, called = twin(), []
    mine.run(mine.compiled, batches(7))

    mine.optimizer.register_step_post_hook(lambda *_: called.append("after"))
    mine.run(mine.compiled, batches(2))

    assert called == ["after", "after"]


def test_nothing_is_recorded_unless_it_is_asked_for(device, monkeypatch):
    monkeypatch.delenv("STEPGRAPH_CUDA_GRAPHS")
    training = twin()

    for _ in range(3):
        training.compiled(torch.randn(5, 4))

    assert device.captures == 0
    assert "CUDA graph: none: STEPGRAPH_CUDA_GRAPHS=1 records one" in str(
        training.compiled.explain()
    )
