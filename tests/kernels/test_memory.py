"""Odd memory: what the kernels take, what they refuse, and that they write nowhere else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepgraph_kernels.catalogue import VARIANTS, update_class
from stepgraph_kernels.comparison import Settings, worst_difference
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.layouts import LAYOUTS
from stepgraph_kernels.spec import Tuning
from support.kernel_operands import DEVICE, INTERPRETER, targets_for

ADAMW = next(v for v in VARIANTS if v.name == "adamw")
SETTINGS = Settings(max_norm=1.0, tuning=INTERPRETER)
TAIL = LAYOUTS[-1]


def drawn(shapes, layouts=LAYOUTS[:1], variant=ADAMW):
    return targets_for(variant, layouts, shapes, SETTINGS)


def errors_of(targets, variant=ADAMW, **changes):
    chosen = Settings(**{**SETTINGS.__dict__, **changes})
    return worst_difference(variant.family, variant.group(), targets, chosen)


def launch(targets, variant=ADAMW, tuning=INTERPRETER):
    MultiTensorUpdate(variant.family, targets, [variant.group()], tuning=tuning).launch()


def replace_all(target, change):
    """The target with every elementwise tensor changed."""
    target.param, target.grad = change(target.param), change(target.grad)
    for name, tensor in target.state.items():
        if tensor.dim():
            target.state[name] = change(tensor)
    target.shadow = None if target.shadow is None else change(target.shadow)
    target.average = None if target.average is None else change(target.average)


def shifted(by):
    def change(tensor):
        backing = torch.zeros(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
        backing[by:] = tensor.reshape(-1)
        return backing[by:].view(tensor.shape)

    return change


@pytest.mark.parametrize("by", [1, 3, 4])
def test_unaligned_views_are_updated_like_any_other(by):
    targets = drawn([(1003,), (40,)], LAYOUTS)
    for target in targets:
        replace_all(target, shifted(by))

    errors = errors_of(targets)

    assert max(errors.values()) <= 1, errors


def test_channels_last_is_updated_in_its_own_order():
    targets = drawn([(4, 6, 5, 3)])
    replace_all(targets[0], lambda t: t.contiguous(memory_format=torch.channels_last))

    errors = errors_of(targets)

    assert targets[0].param.is_contiguous(memory_format=torch.channels_last)
    assert max(errors.values()) <= 1, errors


def test_strides_of_dimensions_of_size_one_do_not_matter():
    targets = drawn([(5, 1)])
    targets[0].grad = torch.randn(5, device=DEVICE).as_strided((5, 1), (1, 99))

    assert max(errors_of(targets).values()) <= 1


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_nothing_is_written_behind_the_end_or_before_the_start(variant):
    (target,) = drawn([(1029,)], [TAIL], variant)
    margin, backings = 64, []

    def between_canaries(tensor):
        backing = torch.full((tensor.numel() + 2 * margin,), math.nan, device=DEVICE)
        backing = backing.to(tensor.dtype)
        backing[margin:-margin] = tensor
        backings.append(backing)
        return backing[margin:-margin]

    replace_all(target, between_canaries)
    update = update_class(variant.family)(
        variant.family, [target], [variant.group()], grads="zero", tuning=INTERPRETER
    )

    update.launch()

    for backing in backings:
        assert backing[:margin].isnan().all()
        assert backing[-margin:].isnan().all()
        assert not backing[margin:-margin].isnan().any()


def elementwise(rule):
    """(a layer-wise norm, or a factor, is of the whole tensor, on purpose)"""
    return rule.measure is None and not rule.factored


ELEMENTWISE = [v for v in VARIANTS if elementwise(v.family.rule(v.group()))]


@settings(max_examples=8)
@given(numel=st.integers(1, 3000), cut=st.floats(0, 1), variant=st.sampled_from(ELEMENTWISE))
def test_splitting_a_tensor_changes_nothing(numel, cut, variant):
    (whole,) = drawn([(numel,)], [TAIL], variant)
    (other,) = drawn([(numel,)], [TAIL], variant)
    k = int(cut * numel)
    pieces = []
    for part in (slice(None, k), slice(k, None)):
        (piece,) = drawn([(1,)], [TAIL], variant)
        piece.param, piece.grad = other.param[part], other.grad[part]
        piece.shadow, piece.average = other.shadow[part], other.average[part]
        for name in variant.family.rule(variant.group()).states:
            piece.state[name] = other.state[name][part]
        pieces.append(piece)

    launch([whole], variant)
    launch(pieces, variant)

    assert torch.equal(whole.param, other.param)
    assert torch.equal(whole.shadow, other.shadow)
    assert torch.equal(whole.average, other.average)
    for name in variant.family.rule(variant.group()).states:
        assert torch.equal(whole.state[name], other.state[name])


def test_an_element_beyond_two_to_the_31_is_reached():
    """Pages of the huge tensors that no chunk touches are never made."""
    numel = 2**31 + 2**14 + 5
    variant = next(v for v in VARIANTS if v.name == "sgd")
    (target,) = drawn([(1,)], variant=variant)
    target.param = torch.empty(numel, dtype=torch.bfloat16, device=DEVICE)
    target.grad = torch.empty(numel, dtype=torch.bfloat16, device=DEVICE)
    target.param[-5:], target.grad[-5:] = 1.0, 2.0
    tuning = Tuning(block=1024, chunk=2**14)
    update = MultiTensorUpdate(variant.family, [target], [variant.group()], tuning=tuning)
    tables = update._tables
    last = int((tables.chunk_offset == 2**31 + 2**14).nonzero())

    update._decide(None, None)
    update._sweep(tables.buckets[0], last, 1)

    lr, decay = variant.options["lr"], variant.options["weight_decay"]
    want = torch.full((5,), 1 - lr * (2 + decay), device=DEVICE)
    torch.testing.assert_close(target.param[-5:].float(), want, rtol=2**-7, atol=0)


REFUSALS = {
    "float64": (
        lambda t: setattr(t, "param", t.param.double()),
        "Adam kernel cannot take second: dtype is torch.float64, kernels take float32, bfloat16",
    ),
    "shape": (
        lambda t: setattr(t, "grad", t.grad[:-1]),
        r"grad of second: shape is \[5, 4\], the parameter has \[6, 4\]",
    ),
    "strides": (
        lambda t: setattr(t, "grad", torch.zeros(4, 6, device=DEVICE).t()),
        r"grad of second: strides are \[1, 6\], the parameter has \[4, 1\]",
    ),
    "gaps": (
        lambda t: replace_all(t, lambda x: x[:, ::2]),
        r"second: strides \[4, 2\] of shape \[6, 2\] leave gaps or overlap",
    ),
    "expanded": (
        lambda t: setattr(t, "param", torch.zeros(1, 4, device=DEVICE).expand(6, 4)),
        r"second: strides \[0, 1\] of shape \[6, 4\] leave gaps or overlap",
    ),
    "sparse": (
        lambda t: setattr(t, "grad", t.grad.to_sparse()),
        "grad of second: layout is torch.sparse_coo, it must be strided",
    ),
    "device": (
        lambda t: setattr(t, "grad", t.grad.to("meta")),
        "grad of second: device is meta, the parameter is on",
    ),
    "states of two dtypes": (
        lambda t: t.state.update(exp_avg=t.state["exp_avg"].bfloat16()),
        "state of second: its states differ in dtype: exp_avg is torch.bfloat16, exp_avg_sq is",
    ),
    "step": (
        lambda t: t.state.update(step=torch.tensor(1)),
        r"step of second: shape \[\] of torch.int64, it must be one float32",
    ),
    "no step": (
        lambda t: t.state.pop("step"),
        r"step of second: missing; found \['exp_avg', 'exp_avg_sq'\]",
    ),
    "no state": (
        lambda t: t.state.pop("exp_avg"),
        "second: its state has no exp_avg",
    ),
    "average": (
        lambda t: setattr(t, "average", t.param.bfloat16()),
        "average of second: dtype is torch.bfloat16, it must be float32",
    ),
    "same twice": (
        lambda t: t.state.update(exp_avg=t.state["exp_avg_sq"]),
        "of second: shares memory with the exp_avg",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_kernel_cannot_take_is_refused_before_anything_is_written(case):
    break_it, message = REFUSALS[case]
    first, second = drawn([(8,), (6, 4)])
    first.name, second.name = "first", "second"
    break_it(second)
    before = first.param.clone()

    with pytest.raises(ValueError, match=message):
        launch([first, second])

    assert torch.equal(first.param, before)


def test_tensors_that_did_not_move_cost_nothing_and_moved_ones_keep_the_tables():
    targets = drawn([(40,), (7,)])
    group = ADAMW.group()
    update = MultiTensorUpdate(ADAMW.family, targets, [group], tuning=INTERPRETER)
    tables = update._tables
    assert not update.rebind(targets, [group])

    targets[1].grad = torch.zeros_like(targets[1].grad)
    targets[1].state["exp_avg"].zero_()
    want = targets[1].param * (1 - group["lr"] * group["weight_decay"])
    assert update.rebind(targets, [group])
    update.launch()

    assert update._tables is tables
    torch.testing.assert_close(targets[1].param, want)


def test_a_gradient_that_moved_off_its_alignment_gets_other_tables():
    targets = drawn([(40,), (7,)])
    group = ADAMW.group()
    update = MultiTensorUpdate(ADAMW.family, targets, [group], tuning=INTERPRETER)
    tables = update._tables

    targets[1].grad = shifted(1)(targets[1].grad)
    update.rebind(targets, [group])

    assert update._tables is not tables
    assert len(update._tables.buckets) == 2


def test_a_state_without_counters_does_not_look_moved():
    variant = next(v for v in VARIANTS if v.name == "sgd momentum")
    targets = drawn([(40,)], variant=variant)
    del targets[0].state["step"]
    update = MultiTensorUpdate(variant.family, targets, [variant.group()], tuning=INTERPRETER)

    assert not update.rebind(targets, [variant.group()])
