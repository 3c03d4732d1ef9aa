"""Muon: the launches on either side of the products, the products, and the whole step."""

import copy

import pytest
import torch

from stepgraph_kernels import fuse
from stepgraph_kernels.muon import MUON, MuonUpdate, newton_schulz
from stepgraph_kernels.spec import Target
from support.kernel_operands import DEVICE, INTERPRETER

OPTIONS = {"lr": 0.05, "weight_decay": 0.1}
SHAPES = [(12, 20), (20, 12), (12, 20), (16, 16)]


def optimizer_of(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, generator=generator).to(DEVICE).requires_grad_() for s in SHAPES]
    return torch.optim.Muon(params, **{**OPTIONS, **options})


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params_of(optimizer):
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)


def targets_of(optimizer, **extra):
    group = optimizer.param_groups[0]
    return [
        Target(p.detach(), p.grad, MUON.initial_state(p.detach(), group), name=f"p{i}", **extra)
        for i, p in enumerate(params_of(optimizer))
    ]


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_reference_equals_torch_bit_for_bit(nesterov, adjust):
    optimizer = optimizer_of(nesterov=nesterov, adjust_lr_fn=adjust)
    group = optimizer.param_groups[0]
    ours = [p.detach().clone() for p in params_of(optimizer)]
    states = [MUON.initial_state(p, group) for p in ours]

    for step in range(3):
        give_gradients(optimizer, step)
        for p, q, state in zip(params_of(optimizer), ours, states, strict=True):
            MUON.reference(q, p.grad, state, group)
        optimizer.step()

    for p, q, state in zip(params_of(optimizer), ours, states, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], state["momentum_buffer"])


@pytest.mark.parametrize("shape", [(3, 8, 24), (3, 24, 8), (2, 16, 16)])
def test_batched_newton_schulz_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE).bfloat16()
    group = optimizer_of().param_groups[0]

    result = newton_schulz(
        matrices, coefficients=group["ns_coefficients"], steps=5, eps=group["eps"]
    )

    assert result.is_contiguous()
    singular = torch.linalg.svdvals(result.float())
    assert 0.3 < singular.min() < singular.max() < 1.4
    for one, many in zip(matrices, result, strict=True):
        # the singular vectors stay: U^T (U S' V^T) V is diagonal
        u, _, vh = torch.linalg.svd(one.float(), full_matrices=False)
        core = u.T @ many.float() @ vh.T
        torch.testing.assert_close(core, core.diag().diag(), atol=0.05, rtol=0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_gather_is_exact_and_apply_is_exact_given_the_directions(nesterov):
    optimizer = optimizer_of(nesterov=nesterov)
    give_gradients(optimizer, 1)
    group = optimizer.param_groups[0]
    targets = targets_of(optimizer)
    for i, target in enumerate(targets):
        target.state["momentum_buffer"].normal_(generator=None).mul_(0.1 * (i + 1))
    before = [
        (t.param.double(), t.grad.double(), t.state["momentum_buffer"].double()) for t in targets
    ]
    update = MuonUpdate(MUON, targets, [group], tuning=INTERPRETER)

    update.launch()

    lr, decay, mu = group["lr"], group["weight_decay"], group["momentum"]
    for stack in update._stacks:
        rows, columns = stack.updates.shape[1:]
        for place, member in enumerate(stack.members):
            param, grad, buffer = before[member]
            buffer = buffer.lerp(grad, 1 - mu)
            gathered = grad.lerp(buffer, mu) if nesterov else buffer
            got = targets[member]
            torch.testing.assert_close(got.state["momentum_buffer"].double(), buffer)
            torch.testing.assert_close(
                stack.updates[place].double(), gathered, rtol=2**-7, atol=1e-6
            )
            ratio = max(1, rows / columns) ** 0.5
            want = param * (1 - lr * decay) - lr * ratio * stack.directions[place].double()
            torch.testing.assert_close(got.param.double(), want, rtol=1e-5, atol=1e-6)


def test_a_skipped_update_changes_no_weights_and_no_momentum():
    optimizer = optimizer_of()
    give_gradients(optimizer, 1)
    targets = targets_of(optimizer)
    targets[2].grad[0, 0] = float("inf")
    before = [t.param.clone() for t in targets]
    update = MuonUpdate(
        MUON, targets, optimizer.param_groups, check_finite=True, grads="zero", tuning=INTERPRETER
    )

    update.launch()

    assert update.skipped.item() == 1
    for target, param in zip(targets, before, strict=True):
        assert torch.equal(target.param, param)
        assert not target.state["momentum_buffer"].any()
        assert not target.grad.any()


def test_shadow_and_average_follow_the_new_weights():
    optimizer = optimizer_of()
    give_gradients(optimizer, 1)
    targets = targets_of(optimizer)
    for target in targets:
        target.shadow = target.param.bfloat16()
        target.average = target.param.clone()
    averages = [t.average.clone() for t in targets]
    update = MuonUpdate(
        MUON, targets, optimizer.param_groups, average_weight=0.25, tuning=INTERPRETER
    )

    update.launch()

    for target, average in zip(targets, averages, strict=True):
        torch.testing.assert_close(target.average, average.lerp(target.param, 0.25))
        torch.testing.assert_close(target.shadow.float(), target.param, rtol=2**-7, atol=0)


def test_fused_steps_are_torchs_up_to_bf16_and_state_travels_both_ways():
    plain, fused = optimizer_of(), optimizer_of()
    fuse(fused, implementation="triton", tuning=INTERPRETER)
    for step in range(4):
        if step == 2:
            fused.load_state_dict(copy.deepcopy(plain.state_dict()))
        if step == 3:
            plain.load_state_dict(copy.deepcopy(fused.state_dict()))
        for optimizer in (plain, fused):
            give_gradients(optimizer, step)
            optimizer.step()

    for p, q in zip(params_of(plain), params_of(fused), strict=True):
        # four steps of 0.05, directions off by a few units of bf16
        torch.testing.assert_close(p, q, atol=8e-3, rtol=0)
        assert set(plain.state[p]) == set(fused.state[q]) == {"momentum_buffer"}
        torch.testing.assert_close(
            plain.state[p]["momentum_buffer"], fused.state[q]["momentum_buffer"]
        )


def test_other_parameters_take_part_when_they_get_a_gradient():
    optimizer = optimizer_of()
    fuse(optimizer, implementation="triton", tuning=INTERPRETER)
    give_gradients(optimizer, 0)
    last = params_of(optimizer)[-1]
    last.grad = None
    before = last.detach().clone()

    optimizer.step()
    assert torch.equal(last, before)
    give_gradients(optimizer, 1)
    optimizer.step()

    assert not torch.equal(last, before)


def test_a_matrix_that_is_not_contiguous_is_refused():
    optimizer = torch.optim.Muon([torch.ones(4, 3, device=DEVICE).t().requires_grad_()])
    fuse(optimizer, implementation="triton")
    params_of(optimizer)[0].grad = torch.ones(4, 3, device=DEVICE).t()

    with pytest.raises(ValueError, match=r"shape \[3, 4\], strides \[1, 3\]; it must be a contig"):
        optimizer.step()
