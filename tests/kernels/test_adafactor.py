"""Adafactor: tiles, states of other shapes than their parameter, and the whole step."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepgraph_kernels import VARIANTS, fuse
from stepgraph_kernels.adafactor import ADAFACTOR, AdafactorUpdate
from stepgraph_kernels.adafactor.tiles import matrices_of, tile_of, tiling
from stepgraph_kernels.comparison import Settings, make_target, worst_difference
from stepgraph_kernels.launch import MultiTensorUpdate
from stepgraph_kernels.layouts import LAYOUTS
from stepgraph_kernels.spec import Tuning
from stepgraph_kernels.table import Bucket
from support.kernel_operands import DEVICE

# the interpreter is NumPy, which warns about inf and nan
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

# larger than elsewhere: the interpreter pays for programs, and each kernel here is a long one
INTERPRETER = Tuning(block=4096, chunk=4096)
PLAIN, MAXIMIZED = (v for v in VARIANTS if v.family is ADAFACTOR)
# larger and smaller than a tile, many matrices, long rows, high columns, vectors, a scalar
SHAPES = [
    (40, 136), (37, 131), (2, 3, 3, 3), (2, 1100), (1100, 2), (1, 1), (5, 1), (2050,), (),
]  # fmt: skip
FEW = [(37, 131), (3, 5, 7), (77,)]


def drawn(shapes=SHAPES, layouts=LAYOUTS[:1], variant=PLAIN, seed=0, **chosen):
    generator = torch.Generator().manual_seed(seed)
    options = {
        "generator": generator,
        "device": torch.device(DEVICE),
        "settings": Settings(tuning=INTERPRETER, **chosen),
    }
    group = variant.group()
    return [
        make_target(ADAFACTOR, group, layout, shape, **options)
        for layout in layouts
        for shape in shapes
    ]


def update_of(targets, group=None, **options):
    options.setdefault("tuning", INTERPRETER)
    return AdafactorUpdate(ADAFACTOR, targets, [group or PLAIN.group()], **options)


def tensors_of(targets):
    return [t for target in targets for t in (target.param, *target.state.values())]


def clones(targets):
    return [tensor.clone() for tensor in tensors_of(targets)]


def same(targets, before):
    return all(map(torch.equal, tensors_of(targets), before))


@pytest.mark.parametrize(
    ("variant", "step"), [(PLAIN, 0), (MAXIMIZED, 300)], ids=["new", "old, maximize"]
)
def test_every_shape_is_updated_as_the_reference_does(variant, step):
    settings = Settings(step=step, max_norm=1.0, scale=8.0, grads="clipped", tuning=INTERPRETER)
    targets = drawn(variant=variant, step=step, scale=8.0)

    errors = worst_difference(ADAFACTOR, variant.group(), targets, settings)

    assert max(errors.values()) <= 1, errors


def test_lanes_behind_the_end_have_no_size():
    """With eps 0 such a lane computes 0 / 0, which must not reach the size of the update."""
    group = {**PLAIN.group(), "eps": (0.0, 1e-3)}
    targets = drawn([(5, 9), (2, 3, 3), (13,)], step=0)

    errors = worst_difference(ADAFACTOR, group, targets, Settings(step=0, tuning=INTERPRETER))

    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1, "d": 2.0}])
def test_reference_equals_torch_bit_for_bit(options, dtype):
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(s).to(dtype)) for s in SHAPES]
    ours = [p.detach().clone() for p in theirs]
    optimizer = torch.optim.Adafactor(theirs, **options)
    group = optimizer.param_groups[0]
    states = [ADAFACTOR.initial_state(p, group) for p in ours]

    for step in range(4):
        for p, q, state in zip(theirs, ours, states, strict=True):
            p.grad = torch.randn_like(p) * (step + 1)
            ADAFACTOR.reference(q, p.grad.clone(), state, group)
        optimizer.step()

    for p, q, state in zip(theirs, ours, states, strict=True):
        assert torch.equal(p, q)
        assert set(optimizer.state[p]) == set(state)
        for name, value in optimizer.state[p].items():
            assert value.shape == state[name].shape
            assert torch.equal(value, state[name]), name


def test_a_matrix_in_many_pieces_is_the_matrix_in_one():
    """More rows than a fold, more columns than a tile, spans that end in the middle."""
    whole, cut = (drawn([(1100, 136), (2, 3, 300)]) for _ in range(2))

    update_of(whole, clip=True, tuning=Tuning(block=1 << 16, chunk=1 << 18)).launch()
    pieces = update_of(cut, clip=True, tuning=Tuning(block=1 << 14, chunk=1 << 15))
    pieces.launch()

    assert pieces._tiling.tile_ranges[0][1] == 5 * 2
    for one, other in zip(tensors_of(whole), tensors_of(cut), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_same_update_twice_gives_the_same_bits():
    both = [drawn([(70, 260), (3, 5, 7)]) for _ in range(2)]
    norms = []
    for targets in both:
        update = update_of(targets, clip=True)
        update.set_max_norm(1.0)
        update.launch()
        norms.append(update.norm.clone())

    assert torch.equal(*norms)
    assert same(both[0], clones(both[1]))


def test_the_norm_is_that_of_all_gradients():
    targets = drawn(FEW[:2], LAYOUTS[1:3])
    update = update_of(targets, clip=True)

    update.launch(scale=torch.tensor(4.0, device=DEVICE))

    square = sum(t.grad.double().square().sum() for t in targets)
    torch.testing.assert_close(update.norm.double(), square.sqrt() / 4, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("poison", "which"), [(math.inf, 0), (math.nan, 2)])
def test_one_value_that_is_not_finite_skips_all_and_the_next_step_is_the_first(poison, which):
    targets, twins = (drawn(FEW, step=0) for _ in range(2))
    good = targets[which].grad.view(-1)[-1].clone()
    targets[which].grad.view(-1)[-1] = poison
    before = clones(targets)
    update = update_of(targets, check_finite=True, clip=True)

    update.launch()

    assert update.skipped.item() == 1
    assert same(targets, before)
    targets[which].grad.view(-1)[-1] = good
    update.launch()
    update_of(twins, check_finite=True, clip=True).launch()
    assert same(targets, clones(twins))


def test_a_large_finite_gradient_is_no_inf():
    targets = drawn(FEW)
    targets[0].grad[0, 0] = 3e38  # its square is not finite
    update = update_of(targets, check_finite=True)

    update.launch()

    assert update.skipped.item() == 0


def test_a_skip_that_the_caller_found_still_zeroes_casts_and_averages():
    targets = drawn([(9, 16), (7,)], [LAYOUTS[-1]])
    averages = [t.average.clone() for t in targets]
    before = clones(targets)
    for t in targets:
        t.shadow.zero_()
    update = update_of(targets, grads="zero", average_weight=0.25)

    update.launch(found_inf=torch.ones((), device=DEVICE))

    assert same(targets, before)
    for t, average in zip(targets, averages, strict=True):
        assert not t.grad.any()
        torch.testing.assert_close(t.average, average.lerp(t.param, 0.25), rtol=0, atol=1e-6)
        torch.testing.assert_close(t.shadow.float(), t.param, rtol=2**-7, atol=0)


def test_without_a_finite_check_a_nan_goes_where_torch_lets_it_go():
    shapes = [(6, 8), (5,), (3, 4)]
    params = [torch.ones(s, device=DEVICE).requires_grad_() for s in shapes]
    twins = [p.detach().clone().requires_grad_() for p in params]
    for p, q in zip(params, twins, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    for p in (params[0], twins[0]):
        p.grad[2, 3] = math.nan
    plain, fused = torch.optim.Adafactor(params), torch.optim.Adafactor(twins)
    fuse(fused, implementation="triton", tuning=INTERPRETER)

    plain.step()
    fused.step()

    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p.isnan(), q.isnan())
        torch.testing.assert_close(p, q, equal_nan=True)


def test_default_eps_is_that_of_the_first_parameter_of_the_group_as_in_torch():
    """torch finds it once a group: a float32 parameter after a bf16 one gets the eps of bf16."""
    dtypes = [torch.bfloat16, torch.float32]
    params = [torch.ones(4, 8, dtype=d, device=DEVICE).requires_grad_() for d in dtypes]
    twins = [p.detach().clone().requires_grad_() for p in params]
    for p, q in zip(params, twins, strict=True):
        p.grad = torch.full_like(p, 1e-3)  # far below the eps of bf16: it decides the step
        q.grad = p.grad.clone()
    plain, fused = (torch.optim.Adafactor(group, lr=0.5) for group in (params, twins))
    fuse(fused, implementation="triton", tuning=INTERPRETER)

    plain.step()
    fused.step()

    torch.testing.assert_close(params[1], twins[1])
    assert (1 - twins[1]).abs().max() < 0.1  # eps of float32 would have moved it by 0.5


def pair(**options):
    torch.manual_seed(0)
    params = [torch.randn(s, device=DEVICE).requires_grad_() for s in FEW]
    twins = [p.detach().clone().requires_grad_() for p in params]
    plain = torch.optim.Adafactor(params, **options)
    fused = torch.optim.Adafactor(twins, **options)
    fuse(fused, implementation="triton", tuning=INTERPRETER)
    return (plain, params), (fused, twins)


def test_fused_steps_are_torchs_and_state_travels_both_ways():
    (plain, params), (fused, twins) = pair(lr=0.1, weight_decay=0.1)
    for step in range(4):
        if step == 2:
            fused.load_state_dict(copy.deepcopy(plain.state_dict()))
        if step == 3:
            plain.load_state_dict(copy.deepcopy(fused.state_dict()))
        for p, q in zip(params, twins, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        plain.step()
        fused.step()

    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
        theirs, ours = plain.state[p], fused.state[q]
        assert set(theirs) == set(ours)
        for name, value in theirs.items():
            assert ours[name].shape == value.shape
            torch.testing.assert_close(ours[name].cpu(), value.cpu(), rtol=1e-5, atol=1e-6)


def test_an_empty_parameter_counts_its_steps():
    targets = drawn([(0,), (2, 0), (0, 3), (4, 4)], step=4)

    update_of(targets, clip=True).launch()

    assert [t.state["step"].item() for t in targets] == [5, 5, 5, 5]


def test_nothing_is_written_behind_the_end_or_before_the_start():
    margin, backings = 64, []

    def between_canaries(tensor):
        backing = torch.full((tensor.numel() + 2 * margin,), math.nan, device=DEVICE)
        backing = backing.to(tensor.dtype)
        backing[margin:-margin] = tensor.reshape(-1)
        backings.append(backing)
        return backing[margin:-margin].view(tensor.shape)

    targets = drawn([(37, 131), (3, 3, 5), (77,)], [LAYOUTS[-1]])
    for t in targets:
        t.param, t.grad = between_canaries(t.param), between_canaries(t.grad)
        t.shadow, t.average = between_canaries(t.shadow), between_canaries(t.average)
        for name in set(t.state) - {"step"}:
            t.state[name] = between_canaries(t.state[name])

    update_of(targets, grads="zero").launch()

    for backing in backings:
        assert backing[:margin].isnan().all()
        assert backing[-margin:].isnan().all()
        assert not backing[margin:-margin].isnan().any()


def test_unaligned_matrices_are_updated_like_any_other():
    by = 1
    targets = drawn([(24, 40), (40,)], LAYOUTS[:2])
    for t in targets:
        for role in ("param", "grad"):
            tensor = getattr(t, role)
            backing = torch.zeros(tensor.numel() + by, dtype=tensor.dtype, device=DEVICE)
            backing[by:] = tensor.reshape(-1)
            setattr(t, role, backing[by:].view(tensor.shape))

    errors = worst_difference(ADAFACTOR, PLAIN.group(), targets, Settings(tuning=INTERPRETER))

    assert max(errors.values()) <= 1, errors


REFUSALS = {
    "channels_last": (
        lambda t: [
            setattr(t, role, getattr(t, role).contiguous(memory_format=torch.channels_last))
            for role in ("param", "grad")
        ],
        r"cannot take it: strides are \[24, 1, 6, 2\], a factored one must be contiguous",
    ),
    "a state of another shape": (
        lambda t: t.state.update(row_var=t.state["col_var"]),
        r"row_var of it: shape is \[5, 2, 1, 3\], it must be \[5, 2, 4, 1\]",
    ),
    "a state with gaps": (
        lambda t: t.state.update(col_var=torch.zeros(5, 2, 1, 6, device=DEVICE)[..., ::2]),
        r"col_var of it: strides are \[12, 6, 6, 2\], it must be contiguous",
    ),
    "states of two dtypes": (
        lambda t: t.state.update(col_var=t.state["col_var"].bfloat16()),
        "state of it: its states differ in dtype: row_var is torch.float32, col_var is",
    ),
    "a vector's state": (
        lambda t: t.state.update(variance=t.state.pop("row_var")),
        "it: its state has no row_var",
    ),
    "a float64 state": (
        lambda t: t.state.update(row_var=t.state["row_var"].double()),
        "row_var of it: dtype is torch.float64",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_kernels_cannot_take_is_refused_before_anything_is_written(case):
    break_it, message = REFUSALS[case]
    first, second = drawn([(6, 8), (5, 2, 4, 3)])
    second.name = "it"
    break_it(second)
    before = first.param.clone()

    with pytest.raises(ValueError, match=message):
        update_of([first, second]).launch()

    assert torch.equal(first.param, before)


def test_the_two_launches_alone_refuse_a_factored_family():
    with pytest.raises(ValueError, match="Adafactor has states of other shapes: use AdafactorUp"):
        MultiTensorUpdate(ADAFACTOR, drawn([(6, 8)]), [PLAIN.group()])


def test_states_that_share_memory_are_refused():
    first, second = drawn([(6, 8), (6, 8)])
    second.state["row_var"] = first.state["row_var"]

    with pytest.raises(ValueError, match=r"row_var of .* shares memory with the row_var"):
        update_of([first, second])


def test_many_tensors_are_as_many_launches_as_few():
    few, many = (update_of(drawn([(8, 8), (3,)] * n)) for n in (1, 40))

    assert len(few._tiling.classes) == len(many._tiling.classes) == 2


def test_a_new_learning_rate_makes_no_new_tables_and_is_used():
    targets = drawn(FEW)
    group = PLAIN.group()
    update = update_of(targets, group)
    tables, before = update._tables, [t.param.clone() for t in targets]

    update.set_hyper([{**group, "lr": 0.0}])
    update.launch()
    still = all(torch.equal(t.param, b) for t, b in zip(targets, before, strict=True))
    update.set_hyper([group])
    update.launch()

    assert still
    assert update._tables is tables
    assert not any(torch.equal(t.param, b) for t, b in zip(targets, before, strict=True))


BUCKET = Bucket(None, (torch.float32,) * 4, (16,) * 5, False, "keep")


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(
        lambda s: math.prod(s) < 30000
    ),
    chunk=st.sampled_from([1024, 4096]),
)
def test_tiles_cover_every_element_once(shape, chunk):
    shape = torch.Size(shape)
    tuning = Tuning(block=1024, chunk=chunk)
    plan = tiling([shape], [BUCKET], tuning)
    tile = plan.classes[0].tile
    covered = torch.zeros(matrices_of(shape), dtype=torch.int32)

    for _, m, r, c in zip(*plan.tiles, strict=True):
        covered[m : m + tile.matrices, r : r + tile.span, c : c + tile.columns] += 1

    assert (covered == 1).all()
    assert tile.matrices * tile.rows * tile.columns in (512, 1024)
    # several matrices only where a tile has all of each
    rows, columns = matrices_of(shape)[1:]
    assert tile.matrices == 1 or (rows <= tile.rows and columns <= tile.columns)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((4096, 1024), (1, 16, 128)),
        ((64, 64, 3, 3), (128, 4, 4)),
        ((2, 50000), (1, 2, 1024)),
        ((50000, 2), (1, 1024, 2)),
        ((768,), (1, 1, 2048)),
    ],
)
def test_tiles_follow_the_shape(shape, tile):
    found = tile_of(torch.Size(shape), block=2048, chunk=65536)

    assert (found.matrices, found.rows, found.columns) == tile


def test_places_beyond_two_to_the_31_do_not_wrap():
    shape = torch.Size((3, 2**20, 2**10))

    plan = tiling([shape], [BUCKET], Tuning(chunk=65536))

    last = [row[-1] for row in plan.tiles]
    assert last == [0, 2, 2**20 - 512, 2**10 - 128]
