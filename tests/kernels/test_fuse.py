"""fuse(optimizer): the same optimizer, another step."""

import copy
import math

import pytest
import torch

from stepgraph_kernels import FAMILIES, VARIANTS, fuse
from support.kernel_operands import DEVICE, INTERPRETER

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

ADAMW = next(v for v in VARIANTS if v.name == "adamw")
MOMENTUM = next(v for v in VARIANTS if v.name == "sgd momentum")
SHAPES = [(5, 7), (3,), (40, 30)]


def pair(variant, **options):
    """Two optimizers on equal parameters; the second has the kernels."""
    torch.manual_seed(0)
    params = [torch.randn(s, device=DEVICE).requires_grad_() for s in SHAPES]
    twins = [p.detach().clone().requires_grad_() for p in params]
    plain = variant.optimizer(params, **{**variant.options, **options})
    fused = variant.optimizer(twins, **{**variant.options, **options})
    fuse(fused, implementation="triton", tuning=INTERPRETER)
    return plain, fused


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(*optimizers, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for tensors in zip(*map(params_of, optimizers), strict=True):
        grad = torch.randn(tensors[0].shape, generator=generator).to(DEVICE) * scale
        for tensor in tensors:
            tensor.grad = grad.clone()


def assert_same(plain, fused, **tolerances):
    tolerances = {"rtol": 1e-5, "atol": 1e-5, **tolerances}
    for p, q in zip(params_of(plain), params_of(fused), strict=True):
        torch.testing.assert_close(p, q, **tolerances)
        theirs, ours = plain.state[p], fused.state[q]
        assert set(theirs) == set(ours)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].cpu(), value.cpu(), **tolerances)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_fused_steps_are_the_optimizers_own(variant):
    plain, fused = pair(variant)

    for step in range(3):
        give_gradients(plain, fused, seed=step)
        plain.step()
        fused.step()

    assert_same(plain, fused)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_state_travels_from_torch_to_the_kernels_and_back(variant):
    plain, fused = pair(variant)
    give_gradients(plain, seed=1)
    plain.step()
    for p, q in zip(params_of(plain), params_of(fused), strict=True):
        q.data.copy_(p.data)

    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    give_gradients(plain, fused, seed=2)
    plain.step()
    fused.step()
    assert_same(plain, fused)

    plain.load_state_dict(copy.deepcopy(fused.state_dict()))
    give_gradients(plain, fused, seed=3)
    plain.step()
    fused.step()
    assert_same(plain, fused)


def test_a_closure_runs_with_gradients_and_its_loss_comes_back():
    plain, fused = pair(ADAMW)

    def closure_of(optimizer):
        def closure():
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params_of(optimizer))
            loss.backward()
            return loss

        return closure

    losses = [optimizer.step(closure_of(optimizer)) for optimizer in (plain, fused)]

    assert torch.equal(*losses)
    assert_same(plain, fused)


def test_parameters_without_gradients_are_left_alone_and_their_step_does_not_advance():
    plain, fused = pair(ADAMW)
    for step in range(2):
        give_gradients(plain, fused, seed=step)
        if step == 0:
            params_of(plain)[1].grad = params_of(fused)[1].grad = None
        plain.step()
        fused.step()

    assert_same(plain, fused)
    assert fused.state[params_of(fused)[1]]["step"].item() == 1


def test_no_gradient_at_all_is_no_step():
    _, fused = pair(ADAMW)
    before = [p.detach().clone() for p in params_of(fused)]

    fused.step()

    assert all(torch.equal(p, b) for p, b in zip(params_of(fused), before, strict=True))


def test_a_group_that_is_added_later_takes_part():
    plain, fused = pair(ADAMW)
    give_gradients(plain, fused)
    plain.step()
    fused.step()
    for optimizer in (plain, fused):
        added = torch.ones(9, device=DEVICE, requires_grad=True)
        optimizer.add_param_group({"params": [added], "lr": 0.5})

    give_gradients(plain, fused, seed=1)
    plain.step()
    fused.step()

    assert_same(plain, fused)


@pytest.mark.parametrize("first", ["scheduler", "fuse"])
def test_schedulers_work_in_either_order(first):
    plain, fused = (ADAMW.optimizer([torch.ones(3, requires_grad=True)], lr=0.1) for _ in "ab")
    make = torch.optim.lr_scheduler.ExponentialLR
    if first == "fuse":
        fuse(fused, implementation="triton", tuning=INTERPRETER)
    schedulers = [make(plain, 0.5), make(fused, 0.5)]
    if first == "scheduler":
        fuse(fused, implementation="triton", tuning=INTERPRETER)

    for step in range(3):
        give_gradients(plain, fused, seed=step)
        for optimizer, scheduler in zip((plain, fused), schedulers, strict=True):
            optimizer.step()
            scheduler.step()

    assert_same(plain, fused)


def test_step_hooks_run():
    _, fused = pair(ADAMW)
    seen = []
    fused.register_step_pre_hook(lambda *_: seen.append("before"))
    fused.register_step_post_hook(lambda *_: seen.append("after"))
    give_gradients(fused)

    fused.step()

    assert seen == ["before", "after"]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("poison", [None, math.inf])
@pytest.mark.parametrize("variant", [ADAMW, MOMENTUM], ids=lambda v: v.name)
def test_a_scaler_unscales_and_skips_as_in_eager(variant, poison, unscale):
    plain, fused = pair(variant)
    scalers = [torch.amp.GradScaler(DEVICE, init_scale=64.0) for _ in range(2)]

    for step in range(3):
        give_gradients(plain, fused, seed=step, scale=64.0)
        if poison is not None and step == 0:
            for optimizer in (plain, fused):
                params_of(optimizer)[1].grad[2] = poison
        for optimizer, scaler in zip((plain, fused), scalers, strict=True):
            scaler.scale(torch.zeros(1, device=DEVICE))
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        gradients = zip(params_of(plain), params_of(fused), strict=True)
        assert all(torch.equal(p.grad.nan_to_num(), q.grad.nan_to_num()) for p, q in gradients)

    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert_same(plain, fused)


def test_a_buffer_that_only_skipped_updates_have_seen_is_not_saved():
    _, fused = pair(MOMENTUM)
    give_gradients(fused)
    fused.found_inf = torch.ones((), device=DEVICE)
    fused.step()
    assert not any(fused.state_dict()["state"].values())

    fused.found_inf.zero_()
    fused.step()
    assert all("momentum_buffer" in s for s in fused.state_dict()["state"].values())


def test_autograd_is_told_about_the_update():
    _, fused = pair(ADAMW)
    p = params_of(fused)[0]
    loss = (p * p).sum()
    give_gradients(fused)

    fused.step()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_copy_of_a_fused_optimizer_is_not_fused_and_works():
    _, fused = pair(ADAMW)
    give_gradients(fused)
    fused.step()
    before = [p.detach().clone() for p in params_of(fused)]

    twin = copy.deepcopy(fused)
    give_gradients(twin)
    twin.step()

    assert "step" not in vars(twin)
    assert all(torch.equal(p, b) for p, b in zip(params_of(fused), before, strict=True))


def test_a_refused_tensor_is_named_and_nothing_is_updated():
    _, fused = pair(ADAMW)
    bad = torch.ones(4, 4, device=DEVICE).t()[:, ::2].requires_grad_()
    fused.add_param_group({"params": [bad]})
    give_gradients(fused)
    before = [p.detach().clone() for p in params_of(fused)]

    with pytest.raises(ValueError, match=r"parameter 0 of group 1, shape \[4, 2\]"):
        fused.step()

    assert all(torch.equal(p, b) for p, b in zip(params_of(fused), before, strict=True))


def test_a_class_without_kernels_is_refused():
    class Mine(torch.optim.AdamW):
        pass

    with pytest.raises(ValueError, match=r"no kernel for .*Mine; there are kernels for Ada"):
        fuse(Mine([torch.ones(1, requires_grad=True)]))


def test_differentiable_is_refused():
    optimizer = torch.optim.Adam([torch.ones(1, requires_grad=True)], differentiable=True)

    with pytest.raises(ValueError, match="differentiable=True; the kernels record no gradient"):
        fuse(optimizer, implementation="triton")


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda k: k.__name__)
def test_on_a_cpu_torchs_fused_implementation_is_used_and_said(kind):
    param = torch.ones(3, 2, requires_grad=True)
    optimizer = kind([param], lr=0.1)
    has_fused = "fused" in optimizer.defaults

    said = str(fuse(optimizer))

    assert said.startswith(f"{kind.__name__}.step(): torch")
    assert ("torch fused (the parameters are on a CPU)" in said) == has_fused
    assert optimizer.param_groups[0].get("fused", False) == has_fused
    param.grad = torch.ones(3, 2)
    optimizer.step()
    assert not torch.equal(param, torch.ones(3, 2))
    assert has_fused or "has no fused implementation" in said


def test_torchs_fused_step_goes_on_from_the_state_at_hand():
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    plain, fused = (torch.optim.AdamW([p], lr=0.1) for p in params)
    for step in range(3):
        if step == 1:
            fuse(fused)
        give_gradients(plain, fused, seed=step)
        plain.step()
        fused.step()

    assert_same(plain, fused)
