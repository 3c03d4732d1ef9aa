"""Updates in torch's fused kernels, against the optimizer's own step on a twin."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW, RMSprop

from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.updates import torch_fused
from stepgraph.lowering.updates.cpp import compiled_kernels
from stepgraph.lowering.updates.cpu import FusedUpdate, fused_update, misfit
from support.paired_optimizers import FITTING, PairedOptimizers


@pytest.mark.parametrize("make", FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fused_update_leaves_what_step_leaves(make, dtype):
    twins = PairedOptimizers(make, dtype)
    update = FusedUpdate(twins.mine)

    for _ in range(5):
        twins.step(update)

    assert update.refusal is None
    twins.close()


def test_without_state_the_own_step_runs_and_makes_it():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)

    twins.step(update)

    assert update.refusal == "it has not stepped every parameter yet"
    twins.close()
    twins.step(update)
    assert update.refusal is None


def test_a_schedule_sees_that_the_optimizer_stepped():
    twins = PairedOptimizers(AdamW)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1) for o in (twins.mine, twins.own)]
    update = fused_update(twins.mine)

    for _ in range(4):
        twins.step(update)
        twins.mine._opt_called = twins.own._opt_called = False
        twins.step(update)
        for schedule in schedules:
            schedule.step()

    assert twins.mine._opt_called is twins.own._opt_called is True
    assert twins.mine.param_groups[0]["lr"] < 1e-4
    twins.close()


def test_a_missing_gradient_leaves_its_parameter_alone():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    twins.step(update)
    twins.step(update)

    twins.gradients()
    for model in twins.models:
        model[0].bias.grad = None
    before = twins.models[0][0].bias.detach().clone()
    update()
    twins.own.step()

    assert torch.equal(twins.models[0][0].bias, before)
    assert update.refusal is None
    twins.close()


def test_state_that_was_loaded_is_used():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    for _ in range(3):
        twins.step(update)
    saved = copy.deepcopy(twins.own.state_dict())
    for _ in range(3):
        twins.step(update)

    for optimizer in (twins.mine, twins.own):
        optimizer.load_state_dict(copy.deepcopy(saved))
    twins.step(update)

    assert update.refusal is None
    assert twins.mine.state_dict()["state"][0]["step"] == 4
    twins.close()


def test_state_of_one_parameter_that_was_replaced_is_used():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    for _ in range(2):
        twins.step(update)

    for optimizer, model in zip((twins.mine, twins.own), twins.models, strict=True):
        fresh = {k: torch.zeros_like(v) for k, v in optimizer.state[model[2].bias].items()}
        optimizer.state[model[2].bias] = fresh
    twins.step(update)

    assert update.refusal is None
    twins.close()


def test_hooks_that_come_later_run():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    twins.step(update)
    twins.step(update)
    called = []

    twins.mine.register_step_post_hook(lambda *_: called.append("after"))
    twins.step(update)

    assert called == ["after"]
    assert update.refusal is not None
    twins.close()


def test_a_part_that_is_left_to_step_is_named():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    first, last = update.part([0, 1], last=False), update.part([2, 3], last=True)

    def both():
        first()
        last()

    twins.step(both)
    twins.step(both)
    twins.step(both)
    assert update.part([0, 1], last=False) is first
    assert update.why_not() is None

    twins.gradients()
    for model in twins.models:
        model[0].weight.grad = model[0].weight.grad.t().contiguous().t()
    both()
    twins.own.step()

    assert "strides of parameters" in update.why_not()
    twins.close()


def test_another_layout_of_a_gradient_is_left_to_step():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    twins.step(update)
    twins.step(update)

    twins.gradients()
    for model in twins.models:
        model[0].weight.grad = model[0].weight.grad.t().contiguous().t()
    update()
    twins.own.step()

    assert "strides of parameters" in update.refusal
    twins.close()


def test_one_layout_for_parameter_gradient_and_state_fits():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    mine, own = AdamW(model.parameters()), AdamW(twin.parameters())
    update = FusedUpdate(mine)

    for _ in range(3):
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        update()
        own.step()

    assert update.refusal is None
    assert is_close(model.weight.detach(), twin.weight.detach())


def test_a_kernel_that_differs_from_step_is_never_used(monkeypatch):
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    twins.step(update)
    real = torch._fused_adamw_
    monkeypatch.setitem(
        torch_fused._KERNELS, "adamw", lambda *a, **k: real(*a, **{**k, "lr": 2 * k["lr"]})
    )

    for _ in range(3):
        twins.step(update)

    assert update.refusal == "the fused kernel differs from step()"
    twins.close()


class OwnAdam(Adam):
    """An optimizer of the user's."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (RMSprop, "no fused CPU kernel for RMSprop"),
        (OwnAdam, "no fused CPU kernel for OwnAdam"),
        (functools.partial(AdamW, foreach=True), "its options choose another implementation"),
        (functools.partial(AdamW, fused=False), "its options choose another implementation"),
        (functools.partial(Adam, differentiable=True), "differentiable or capturable"),
    ],
)
def test_what_does_not_fit_is_named(make, reason):
    assert fused_update(make([nn.Parameter(torch.ones(2))], lr=0.1)) == reason


def test_a_step_that_was_replaced_is_not_fused():
    optimizer = AdamW([nn.Parameter(torch.ones(2))])
    optimizer.step = lambda: None

    assert misfit(optimizer) == "its step() was replaced"


def test_a_group_of_several_dtypes_is_not_fused():
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]

    assert misfit(AdamW(params)) == "a param group of several dtypes"


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_a_scaler_skips_what_it_skips_in_eager(unscaled, fused, kind):
    twins = PairedOptimizers(functools.partial(AdamW, fused=fused))
    update = FusedUpdate(twins.mine, kernels=None if kind == "torch" else compiled_kernels())
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2) for _ in range(2)]
    for scaler in scalers:
        scaler.scale(torch.ones(()))

    for value in (1.0, 1.0, 1.0, float("inf"), 1.0):
        twins.gradients()
        for model, scaler in zip(twins.models, scalers, strict=True):
            for p in model.parameters():
                p.grad *= value * scaler.get_scale()
        for scaler, optimizer in zip(scalers, (twins.mine, twins.own), strict=True):
            if unscaled:
                scaler.unscale_(optimizer)
        update.scaled(scalers[0])
        scalers[1].step(twins.own)
        for scaler in scalers:
            scaler.update()
        twins.close()
        pairs = zip(*(m.parameters() for m in twins.models), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs)

    assert scalers[0].get_scale() == scalers[1].get_scale() == 8.0  # it was 16
    assert update.refusal is None
    assert update.kinds == (kind,)
    assert vars(twins.mine).keys() == vars(twins.own).keys()


def test_an_error_of_a_scaler_leaves_the_optimizer_as_it_was():
    twins = PairedOptimizers(AdamW)
    update = FusedUpdate(twins.mine)
    scaler = torch.amp.GradScaler("cpu")  # has scaled nothing
    twins.gradients()

    with pytest.raises(AssertionError, match="_scale is None"):
        update.scaled(scaler)

    assert vars(twins.mine).keys() == vars(twins.own).keys()
