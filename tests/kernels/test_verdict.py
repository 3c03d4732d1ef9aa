"""What the first launch decides: norm, clip, finite check, skip, counters."""

import math

import pytest
import torch

from stepgraph_kernels import launch as launch_module
from stepgraph_kernels.adafactor import update as adafactor_module
from stepgraph_kernels.catalogue import VARIANTS, update_class
from stepgraph_kernels.comparison import Settings
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.layouts import LAYOUTS, Layout
from stepgraph_kernels.spec import Target
from support.kernel_operands import DEVICE, INTERPRETER, targets_for

# the interpreter is NumPy, which warns about inf and nan
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

ADAMW = next(v for v in VARIANTS if v.name == "adamw")
TAIL = LAYOUTS[-1]


def drawn(layouts=LAYOUTS[:1], shapes=((40, 50), (2100,), (3,)), variant=ADAMW, **settings):
    return targets_for(variant, layouts, shapes, Settings(tuning=INTERPRETER, **settings))


def update_of(targets, variant=ADAMW, **options):
    options.setdefault("tuning", INTERPRETER)
    return MultiTensorUpdate(variant.family, targets, [variant.group()], **options)


def snapshot(targets):
    return [
        {"param": t.param.clone(), **{name: s.clone() for name, s in t.state.items()}}
        for t in targets
    ]


def unchanged(targets, before):
    return all(
        torch.equal(t.param, b["param"]) and all(torch.equal(t.state[n], b[n]) for n in t.state)
        for t, b in zip(targets, before, strict=True)
    )


def test_norm_is_torchs():
    targets = drawn(LAYOUTS[:3])
    update = update_of(targets, clip=True)

    update.launch()

    params = [torch.nn.Parameter(t.param.float()) for t in targets]
    for p, t in zip(params, targets, strict=True):
        p.grad = t.grad.float()
    torch.testing.assert_close(
        update.norm, torch.nn.utils.clip_grad_norm_(params, 1.0), rtol=1e-6, atol=0
    )


def test_norm_is_bitwise_the_same_from_run_to_run_and_for_more_programs():
    targets = drawn()
    update = update_of(targets, clip=True)

    norms = []
    for _ in range(2):
        update.launch()
        norms.append(update.norm.clone())

    assert torch.equal(*norms)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 7, 2050, -1])
def test_one_value_that_is_not_finite_skips_the_whole_update(poison, place):
    targets = drawn()
    targets[1].grad.view(-1)[place] = poison
    before = snapshot(targets)
    update = update_of(targets, check_finite=True, clip=True)

    update.launch()

    assert update.skipped.item() == 1
    assert unchanged(targets, before)


def test_a_large_finite_gradient_is_no_inf():
    targets = drawn()
    targets[0].grad[0, 0] = 3e38  # its square is not finite
    before = snapshot(targets)
    update = update_of(targets, check_finite=True)

    update.launch()

    assert update.skipped.item() == 0
    assert not unchanged(targets, before)


def test_without_a_finite_check_a_nan_reaches_every_parameter_as_in_eager_clipping():
    targets = drawn()
    targets[1].grad[0] = math.nan
    update = update_of(targets, clip=True)
    update.set_max_norm(1.0)

    update.launch()

    assert update.norm.isnan()
    assert all(t.param.isnan().all() for t in targets)


def test_without_clipping_a_nan_stays_in_its_own_element():
    targets = drawn()
    targets[1].grad[0] = math.nan

    update_of(targets).launch()

    assert [int(t.param.isnan().sum()) for t in targets] == [0, 1, 0]


def test_a_skip_that_the_caller_found_skips():
    targets = drawn()
    before = snapshot(targets)
    update = update_of(targets)

    update.launch(found_inf=torch.ones((), device=DEVICE))

    assert unchanged(targets, before)
    update.launch(found_inf=torch.zeros((), device=DEVICE))
    assert not unchanged(targets, before)


def test_a_skipped_update_still_zeroes_casts_and_averages():
    targets = drawn([TAIL], shapes=[(2100,), (5,)])
    for t in targets:
        t.shadow.zero_()
    targets[0].grad[3] = math.inf
    averages = [t.average.clone() for t in targets]
    before = snapshot(targets)
    update = update_of(targets, check_finite=True, grads="zero", average_weight=0.25)

    update.launch()

    assert unchanged(targets, before)
    for t, average in zip(targets, averages, strict=True):
        assert not t.grad.any()
        torch.testing.assert_close(t.average, average.lerp(t.param, 0.25), rtol=0, atol=1e-6)
        torch.testing.assert_close(t.shadow.float(), t.param, rtol=2**-7, atol=0)


def test_gradients_below_the_limit_are_not_scaled():
    small, plain = drawn(), drawn()
    update = update_of(small, clip=True)
    update.set_max_norm(1e6)

    update.launch()
    update_of(plain).launch()

    for a, b in zip(small, plain, strict=True):
        assert torch.equal(a.param, b.param)


def test_a_new_limit_and_new_hyper_parameters_need_no_new_tables():
    targets = drawn()
    update = update_of(targets, clip=True)
    tables = update._tables
    frozen = {**ADAMW.group(), "lr": 0.0}
    before = [t.param.clone() for t in targets]

    update.set_hyper([frozen])
    update.set_max_norm(0.5)
    update.launch()

    assert update._tables is tables
    assert all(torch.equal(t.param, b) for t, b in zip(targets, before, strict=True))


class Recorder:
    """Stands in for a kernel: notes what a launch would be compiled for."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        def launch(*operands, **constants):
            where = [o.data_ptr() if isinstance(o, torch.Tensor) else o for o in operands]
            self.launches.append((grid, where, constants))

        return launch


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_other_hyper_parameters_launch_the_same_kernels_with_the_same_arguments(
    variant, monkeypatch
):
    """So a schedule recompiles nothing, and a CUDA graph need not be captured again."""
    recorder = Recorder()
    for module in (launch_module, adafactor_module):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, recorder)
    group = variant.group()
    targets = drawn(variant=variant)
    update = update_class(variant.family)(variant.family, targets, [group], clip=True)

    update.launch()
    first = list(recorder.launches)
    update.set_hyper([{**group, "lr": 0.5, "weight_decay": 0.2, "maximize": True}])
    update.set_max_norm(3.0)
    update.launch()

    assert len(first) >= 2
    assert recorder.launches == first * 2


def test_a_learning_rate_that_is_a_tensor_is_read_again_each_time():
    targets = drawn()
    lr = torch.zeros((), device=DEVICE)
    group = {**ADAMW.group(), "lr": lr}
    update = MultiTensorUpdate(ADAMW.family, targets, [group], tuning=INTERPRETER)
    before = [t.param.clone() for t in targets]

    update.launch()
    still = all(torch.equal(t.param, b) for t, b in zip(targets, before, strict=True))
    lr.fill_(0.1)
    update.set_hyper([group])
    update.launch()

    assert still
    assert not any(torch.equal(t.param, b) for t, b in zip(targets, before, strict=True))


def test_every_tensor_has_the_hyper_parameters_of_its_group():
    targets = drawn()
    groups = [{**ADAMW.group(), "lr": lr, "weight_decay": 0.0} for lr in (0.0, 0.5)]
    for t in targets[1:]:
        t.group = 1
    before = snapshot(targets)

    MultiTensorUpdate(ADAMW.family, targets, groups, tuning=INTERPRETER).launch()

    moved = [not torch.equal(t.param, b["param"]) for t, b in zip(targets, before, strict=True)]
    assert moved == [False, True, True]


def test_counters_advance_by_one_for_empty_tensors_too():
    targets = drawn(shapes=[(0,), (3,), (2, 0)], step=4)

    update_of(targets, clip=True).launch()

    assert [t.state["step"].item() for t in targets] == [5, 5, 5]


def test_many_tensors_are_two_launches():
    targets = drawn(shapes=[(3,)] * 130)
    update = update_of(targets, clip=True)

    assert len(update._tables.buckets) == 1
    before = snapshot(targets)
    update.launch()
    assert all(not torch.equal(t.param, b["param"]) for t, b in zip(targets, before, strict=True))
    assert {t.state["step"].item() for t in targets} == {2.0}


def test_first_momentum_step_ignores_dampening_only_for_a_new_buffer():
    variant = next(v for v in VARIANTS if v.name == "sgd momentum")
    fresh, seasoned = (drawn(shapes=[(5,)], variant=variant, step=0) for _ in range(2))
    del seasoned[0].state["step"]  # a buffer without our count has been used before

    update_of(fresh, variant).launch()
    update_of(seasoned, variant).launch()

    decayed = fresh[0].state["momentum_buffer"]
    torch.testing.assert_close(seasoned[0].state["momentum_buffer"], decayed * 0.7)


def test_an_update_needs_a_target():
    with pytest.raises(ValueError, match="at least one parameter with a gradient"):
        update_of([])


def test_layouts_count_their_bytes():
    rule = ADAMW.family.rule(ADAMW.group())

    assert Layout("float32").bytes_per_element(rule) == 28
    assert Layout("float32").bytes_per_element(rule, norm=True) == 32
    assert TAIL.bytes_per_element(rule, norm=True, zero=True) == 46
    master = Layout("m", grad=torch.bfloat16, shadow=torch.bfloat16)
    assert master.bytes_per_element(rule, norm=True) == 30
    assert isinstance(drawn()[0], Target)


def test_a_skipped_lamb_step_leaves_states_and_ratios_for_the_next_one():
    variant = next(v for v in VARIANTS if v.name == "lamb")
    targets, twins = (drawn(variant=variant) for _ in range(2))
    update, twin = (update_of(t, variant) for t in (targets, twins))
    before = snapshot(targets)

    update.launch(found_inf=torch.ones((), device=DEVICE))
    assert unchanged(targets, before)
    update.launch()
    twin.launch()

    for a, b in zip(targets, twins, strict=True):
        assert torch.equal(a.param, b.param)
