"""Each reference is torch.optim's own arithmetic, to the bit."""

import copy

import pytest
import torch

from stepgraph_kernels.catalogue import VARIANTS

OURS = ("lion", "lamb")  # not in torch; see their own tests
IN_TORCH = [v for v in VARIANTS if not v.name.startswith(OURS)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", IN_TORCH, ids=lambda v: v.name)
def test_reference_equals_torch_bit_for_bit(variant, dtype):
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(7, 5).to(dtype))]
    ours = [p.detach().clone() for p in theirs]
    optimizer = variant.optimizer(theirs, **variant.options)
    for group in optimizer.param_groups:
        group["foreach"] = False
    states = [{} if not optimizer.state[p] else copy.deepcopy(optimizer.state[p]) for p in theirs]

    for step in range(8):
        for index, p in enumerate(theirs):
            p.grad = torch.randn_like(p) * (step + 1)
            if not states[index] and not variant.family.optional_counters:
                states[index] = variant.family.initial_state(ours[index], variant.group())
            variant.family.reference(ours[index], p.grad.clone(), states[index], variant.group())
        optimizer.step()

    for p, q, state in zip(theirs, ours, states, strict=True):
        assert torch.equal(p, q)
        for name, value in optimizer.state[p].items():
            if value is not None:
                assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_initial_state_is_the_one_the_optimizer_creates(variant):
    param = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = variant.optimizer([param], **variant.options)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    theirs = {name: value for name, value in optimizer.state[param].items() if value is not None}

    ours = variant.family.initial_state(param.detach(), variant.group())

    private = set(variant.family.counters) if variant.family.optional_counters else set()
    assert set(ours) - private == set(theirs)
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert ours[name].dtype == value.dtype, name


def test_lion_steps_by_the_sign_of_the_mix_and_keeps_the_slower_momentum():
    """Algorithm 2 of arXiv 2302.06675, worked by hand."""
    variant = next(v for v in VARIANTS if v.name == "lion")
    group = {**variant.group(), "lr": 0.5, "betas": (0.5, 0.75), "maximize": False}
    group["weight_decay"] = 0.25
    param, grad = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([4.0, -4.0, 2.0])
    state = {"exp_avg": torch.tensor([-8.0, -4.0, -2.0])}

    variant.family.reference(param, grad, state, group)

    # mix: -2, -4, 0; decay: 1 - 0.5 * 0.25 = 0.875
    assert param.tolist() == [0.875 + 0.5, -1.75 + 0.5, 3.5]
    assert state["exp_avg"].tolist() == [-5.0, -4.0, -1.0]


def test_lamb_moves_a_layer_by_lr_times_its_norm():
    """Algorithm 2 of arXiv 1904.00962: whatever the gradient, |change| = lr |weights|."""
    variant = next(v for v in VARIANTS if v.name == "lamb")
    torch.manual_seed(0)
    param = torch.randn(6, 4, dtype=torch.float64)
    before = param.clone()
    state = variant.family.initial_state(param, variant.group())
    group = {**variant.group(), "weight_decay": 0.0, "maximize": False}
    grad = torch.randn_like(param)

    variant.family.reference(param, grad, state, group)

    change = param - before
    torch.testing.assert_close(change.norm(), group["lr"] * before.norm())
    # the first step of Adam is the sign of the gradient
    torch.testing.assert_close(change / change[0, 0].abs(), -grad.sign(), atol=1e-4, rtol=0)
    torch.testing.assert_close(state["exp_avg"], 0.1 * grad)


def test_lamb_leaves_a_layer_of_zeros_the_plain_step():
    variant = next(v for v in VARIANTS if v.name == "lamb")
    param = torch.zeros(3)
    group = {**variant.group(), "lr": 0.5, "eps": 0.0, "maximize": False}

    state = variant.family.initial_state(param, group)
    variant.family.reference(param, torch.tensor([2.0, -1.0, 4.0]), state, group)

    torch.testing.assert_close(param, torch.tensor([-0.5, 0.5, -0.5]))
