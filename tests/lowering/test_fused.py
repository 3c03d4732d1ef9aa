"""Updates in torch's fused kernels, against the optimizer's own step on a twin."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.fused import FusedUpdate, fused_update, misfit

FITTING = [
    AdamW,
    functools.partial(AdamW, amsgrad=True, weight_decay=0.1),
    functools.partial(AdamW, maximize=True),
    functools.partial(AdamW, lr=torch.tensor(0.01, dtype=torch.float64)),
    Adam,
    functools.partial(Adam, weight_decay=0.1),
    functools.partial(SGD, momentum=0.9, nesterov=True),
    functools.partial(SGD, momentum=0.9, dampening=0.1, weight_decay=0.1),
    SGD,
    functools.partial(Adagrad, lr_decay=0.1),
]


class Twins:
    """Two equal models: one is updated by a fused update, one by `step()`."""

    def __init__(self, make, dtype=torch.float32):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
        self.models = model, copy.deepcopy(model)
        self.mine, self.own = (_optimizer(make, m) for m in self.models)
        self.updates = 0

    def gradients(self):
        """Give both the same gradients."""
        torch.manual_seed(self.updates)
        self.updates += 1
        for ours, theirs in zip(*(m.parameters() for m in self.models), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()

    def step(self, update):
        self.gradients()
        update()
        self.own.step()

    def close(self):
        ours, theirs = self.mine.state_dict(), self.own.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for index, state in ours["state"].items():
            assert state.keys() == theirs["state"][index].keys()
            assert all(_agree(v, theirs["state"][index][k]) for k, v in state.items())
        pairs = zip(*(m.parameters() for m in self.models), strict=True)
        assert all(is_close(a.detach(), b.detach()) for a, b in pairs)


def _agree(a, b):
    return is_close(a, b) if isinstance(a, torch.Tensor) else a == b


def _optimizer(make, model):
    groups = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": model[2].parameters()},
    ]
    return make(groups) if "lr" in getattr(make, "keywords", {}) else make(groups, lr=0.01)


@pytest.mark.parametrize("make", FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fused_update_leaves_what_step_leaves(make, dtype):
    twins = Twins(make, dtype)
    update = FusedUpdate(twins.mine)

    for _ in range(5):
        twins.step(update)

    assert update.refusal is None
    twins.close()


def test_without_state_the_own_step_runs_and_makes_it():
    twins = Twins(AdamW)
    update = FusedUpdate(twins.mine)

    twins.step(update)

    assert update.refusal == "it has not stepped every parameter yet"
    twins.close()
    twins.step(update)
    assert update.refusal is None


def test_a_schedule_sees_that_the_optimizer_stepped():
    twins = Twins(AdamW)
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
    twins = Twins(AdamW)
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
    twins = Twins(AdamW)
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
    twins = Twins(AdamW)
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
    twins = Twins(AdamW)
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
    twins = Twins(AdamW)
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

    assert "laid out differently" in update.why_not()
    twins.close()


def test_another_layout_of_a_gradient_is_left_to_step():
    twins = Twins(AdamW)
    update = FusedUpdate(twins.mine)
    twins.step(update)
    twins.step(update)

    twins.gradients()
    for model in twins.models:
        model[0].weight.grad = model[0].weight.grad.t().contiguous().t()
    update()
    twins.own.step()

    assert "laid out differently" in update.refusal
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
    twins = Twins(AdamW)
    update = FusedUpdate(twins.mine)
    twins.step(update)
    real = torch._fused_adamw_
    monkeypatch.setattr(
        torch, "_fused_adamw_", lambda *a, **k: real(*a, **{**k, "lr": 2 * k["lr"]})
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
