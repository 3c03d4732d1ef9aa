"""Our own CPU kernels for updates, against the optimizer's own step on a twin."""

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from stepgraph import torch_private
from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.cpp_library import library
from stepgraph.lowering.updates.cpp import CompiledKernel, compiled_kernels
from stepgraph.lowering.updates.cpu import FusedUpdate, fused_update
from support.paired_optimizers import FITTING, PairedOptimizers


def _update(twins):
    update = FusedUpdate(twins.mine, kernels=compiled_kernels())
    twins.step(update)  # makes the state
    twins.step(update)  # the trial
    return update


def _kinds(monkeypatch):
    """Return the launches of our kernels since, as they come."""
    calls, real = [], CompiledKernel.run

    def record(self, launch, factor):
        calls.append(launch)
        real(self, launch, factor)

    monkeypatch.setattr(CompiledKernel, "run", record)
    return calls


@pytest.fixture
def two_threads():
    n = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n)


@pytest.mark.parametrize("make", FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiled_update_leaves_what_step_leaves(make, dtype, monkeypatch):
    twins = PairedOptimizers(make, dtype)
    update = _update(twins)
    calls = _kinds(monkeypatch)

    for _ in range(4):
        twins.step(update)

    assert update.refusal is None
    assert update.kinds == ("compiled",)
    assert len(calls) == 8  # two param groups
    twins.close()


@pytest.mark.parametrize("make", FITTING)
def test_clipping_is_part_of_the_kernel(make, monkeypatch):
    twins = PairedOptimizers(make)
    update = _update(twins)
    calls, factor = _kinds(monkeypatch), torch.tensor(0.25)

    for _ in range(3):
        twins.gradients()
        for p in twins.models[1].parameters():
            p.grad *= factor
        update.clipped(factor)
        twins.own.step()

    assert len(calls) == 6
    twins.close()
    pairs = zip(*(m.parameters() for m in twins.models), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, (1 << 15) + 1, (1 << 17) + 3])
def test_every_element_of_a_tensor_is_updated_once_whatever_its_size(n, two_threads):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(n)) for _ in range(2)]
    params[1].data.copy_(params[0].data)
    optimizers = [SGD([p], lr=0.1, momentum=0.9) for p in params]
    update = FusedUpdate(optimizers[0], kernels=compiled_kernels())

    for _ in range(4):
        params[0].grad = torch.randn(n)
        params[1].grad = params[0].grad.clone()
        update()
        optimizers[1].step()

    assert update.refusal is None
    torch.testing.assert_close(params[0], params[1], rtol=1e-6, atol=1e-6)


def test_what_is_not_a_number_stays_that(monkeypatch):
    twins = PairedOptimizers(FITTING[1])  # amsgrad: a largest value is kept
    update = _update(twins)
    calls = _kinds(monkeypatch)

    twins.gradients()
    for model in twins.models:
        model[0].weight.grad[0, 0] = float("nan")
        model[0].weight.grad[1, 0] = float("inf")
    update()
    twins.own.step()
    for _ in range(2):
        twins.step(update)

    assert calls
    ours, theirs = (m[0].weight.isnan() for m in twins.models)
    assert ours.sum() == 2
    assert torch.equal(ours, theirs)


def test_weights_that_do_not_decay_may_be_infinite():
    twins = PairedOptimizers(FITTING[4])
    update = _update(twins)

    for model in twins.models:
        model[0].weight.data[0, 0] = float("inf")
    twins.step(update)

    assert twins.models[0][0].weight[0, 0] == float("inf")
    assert twins.models[1][0].weight[0, 0] == float("inf")


@pytest.mark.parametrize("ours", [True, False])
def test_autograd_notices_that_a_weight_was_written(ours):
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine, kernels=compiled_kernels() if ours else None)
    for _ in range(3):
        twins.step(update)
    model = twins.models[0]
    x = torch.randn(2, 5, requires_grad=True)
    loss = model(x).sum()

    twins.step(update)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_missing_gradient_leaves_its_parameter_alone(monkeypatch):
    twins = PairedOptimizers(AdamW)
    update = _update(twins)
    calls = _kinds(monkeypatch)

    twins.gradients()
    for model in twins.models:
        model[0].bias.grad = None
    update()
    twins.own.step()
    twins.step(update)

    each = 5  # a parameter, its gradient, two averages, a counter
    assert [len(launch.tensors) // each for launch in calls] == [1, 2, 2, 2]
    twins.close()


def test_an_option_that_changes_which_state_is_used_is_noticed():
    twins = PairedOptimizers(functools.partial(SGD, momentum=0.9))
    update = _update(twins)
    twins.step(update)

    for optimizer in (twins.mine, twins.own):
        for group in optimizer.param_groups:
            group["momentum"] = 0
    twins.step(update)

    twins.close()  # the buffers, too, which nobody touches now


def _with_lists(groups, **options):
    optimizer = AdamW(groups, **options)
    for group in optimizer.param_groups:
        group["betas"] = list(group["betas"])
    return optimizer


def _in_place(group):
    group["betas"][0] = 0.5


def _a_tensor_in_place(group):
    group["lr"] = group["lr"] if isinstance(group["lr"], float) else group["lr"].mul_(0.5)


_CHANGES = {
    "a number": (AdamW, lambda group: group.update(lr=0.5)),
    "a flag": (AdamW, lambda group: group.update(maximize=True)),
    "an equal number": (AdamW, lambda group: group.update(eps=float("1e-8"))),
    "a list, in place": (_with_lists, _in_place),
    "a tensor, in place": (functools.partial(AdamW, lr=torch.tensor(0.1)), _a_tensor_in_place),
    "which formula": (AdamW, lambda group: group.update(decoupled_weight_decay=False)),
    "whether it fits": (AdamW, lambda group: group.update(foreach=True)),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_options_that_change_between_updates_hold_from_the_next_one_on(change):
    make, apply = _CHANGES[change]
    twins = PairedOptimizers(make)
    update = _update(twins)
    for _ in range(2):
        twins.step(update)

    for optimizer in (twins.mine, twins.own):
        for group in optimizer.param_groups:
            apply(group)
    for _ in range(3):
        twins.step(update)
        twins.close()

    assert (update.refusal is None) == (change != "whether it fits")


def test_options_of_a_loaded_state_hold_from_the_next_update_on():
    twins = PairedOptimizers(AdamW)
    update = _update(twins)
    twins.step(update)

    for optimizer in (twins.mine, twins.own):
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            group.update(lr=0.3, weight_decay=0.5)
        optimizer.load_state_dict(state)
    for _ in range(3):
        twins.step(update)

    assert update.refusal is None
    twins.close()


def test_a_parameter_put_into_a_group_by_hand_is_updated_too():
    twins = PairedOptimizers(AdamW)
    update = _update(twins)
    more = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for optimizer, param in zip((twins.mine, twins.own), more, strict=True):
        optimizer.param_groups[0]["params"].append(param)

    for _ in range(3):
        for param in more:
            param.grad = torch.full((3,), 0.5)
        twins.step(update)

    assert update.refusal is None
    assert not torch.equal(more[0], torch.ones(3))
    assert is_close(more[0].detach(), more[1].detach())
    twins.close()


def test_a_gradient_laid_out_otherwise_is_left_to_step():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    mine, own = AdamW(model.parameters()), AdamW(twin.parameters())
    update = FusedUpdate(mine, kernels=compiled_kernels())

    refusals = []
    for format in (torch.channels_last,) * 3 + (torch.contiguous_format,):
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape)
            if ours.dim() == 4:
                ours.grad = ours.grad.contiguous(memory_format=format)
            theirs.grad = ours.grad.clone()
        update()
        own.step()
        refusals.append(update.refusal)

    assert refusals[2] is None
    assert "strides of parameters" in refusals[3]
    assert is_close(model.weight.detach(), twin.weight.detach())


def test_state_of_another_size_is_left_to_step_which_complains():
    twins = PairedOptimizers(AdamW)
    update = _update(twins)
    weight = twins.models[0][0].weight
    twins.gradients()
    twins.mine.state[weight]["exp_avg"] = torch.zeros(3)

    with pytest.raises(RuntimeError, match="size"):
        update()


def test_a_counter_that_is_no_tensor_is_left_to_step_which_complains():
    twins = PairedOptimizers(AdamW)
    update = _update(twins)
    twins.gradients()
    for state in twins.mine.state.values():
        state["step"] = state["step"].item()

    with pytest.raises(RuntimeError, match="state_steps"):
        update()

    assert "else than tensors" in update.refusal


def test_a_kernel_that_differs_from_step_is_never_used(monkeypatch):
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine, kernels=compiled_kernels())
    twins.step(update)
    real = CompiledKernel.run

    def wrong(self, launch, factor):
        lr, *others = launch.options
        real(self, dataclasses.replace(launch, options=(2 * lr, *others)), factor)

    monkeypatch.setattr(CompiledKernel, "run", wrong)
    for _ in range(3):
        twins.step(update)

    assert update.refusal == "the fused kernel differs from step()"
    twins.close()


def test_low_precision_runs_in_torchs_kernel(monkeypatch):
    twins = PairedOptimizers(AdamW, torch.bfloat16)
    update = _update(twins)
    calls = _kinds(monkeypatch)

    twins.step(update)

    assert update.refusal is None
    assert update.kinds == ("torch",)
    assert not calls
    twins.close()


def test_without_a_compiler_torchs_kernels_run(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch_private, "load_cpp", refuse)
    library.cache_clear()
    try:
        assert compiled_kernels() == "no C++ compiler"
        twins = PairedOptimizers(AdamW)
        update = fused_update(twins.mine)
        for _ in range(3):
            twins.step(update)
    finally:
        library.cache_clear()

    assert update.refusal is None
    twins.close()
