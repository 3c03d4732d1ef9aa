"""Steps whose regions a driver runs, beside the same steps run eagerly."""

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import stepgraph
from stepgraph.lowering.closeness import is_close
from stepgraph.lowering.regions import inductor
from stepgraph.lowering.regions.driver import driver
from stepgraph.torch_private import Unreadable
from support.inductor_beside_eager import World, assert_close_models, mlp, rows, side_by_side

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.slow,  # a C++ compiler for each step
]


def training(model: nn.Module, forward: Any = None, **options: Any) -> World:
    """A plain training step; it returns its loss and what the model gave."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **options)
    forward = forward or model

    def step(x, y):
        optimizer.zero_grad()
        logits = forward(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return loss, logits.detach()

    return World(model, step)


def drivers(compiled: Any) -> list[Any]:
    """Return why each region of a step has no driver; None where it has one."""
    regions = [r for v in compiled._variants for r in v.rewritten.lowered.regions]
    assert all(region.refusal is None for region in regions)
    return [region.undriven for region in regions]


def test_a_classifier_is_driven_and_what_ten_calls_return_can_be_kept():
    side_by_side(lambda: training(mlp(), momentum=0.9), rows, calls=10, undriven=())


def test_one_batch_after_the_other_in_double_precision_is_driven():
    def batches(index):
        x, y = rows(index)
        return x.double(), y

    side_by_side(lambda: training(mlp().double()), batches, undriven=())


def test_one_weight_in_two_places_is_driven():
    def make():
        model = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])

        def forward(x):
            hidden = torch.tanh(model[0](x))
            return model[1](torch.tanh(F.linear(hidden, model[0].weight.t())))

        return training(model, forward)

    side_by_side(make, rows, undriven=())


def test_dozens_of_parameters_in_one_kernel_are_driven():
    def make():
        scales = nn.ParameterList(torch.randn(6) / 20 for _ in range(80))
        model = nn.ModuleList([nn.Linear(6, 3), scales])

        def forward(x):
            return model[0](torch.stack([x * scale for scale in scales]).sum(0))

        return training(model, forward, momentum=0.9)

    side_by_side(make, rows, undriven=())


def test_buffers_written_in_place_are_driven():
    def make():
        hidden = nn.Linear(6, 8, bias=False)  # the gradient of a bias would be noise
        model = nn.Sequential(hidden, nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        model.register_buffer("mean", torch.zeros(6))
        model.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(x):
            model.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            model.seen.add_(1)
            return model(x - model.mean)

        return training(model, forward)

    side_by_side(make, lambda index: rows(index, 8), undriven=())


def test_what_passes_between_two_regions_is_driven():
    def make():
        model = nn.ModuleDict({"g": nn.Linear(3, 6), "n": nn.LayerNorm(6), "d": nn.Linear(6, 1)})
        d_opt = torch.optim.SGD(model["d"].parameters(), lr=0.01)
        g_opt = torch.optim.SGD([*model["g"].parameters(), *model["n"].parameters()], lr=0.01)

        def step(x, z):
            d_opt.zero_grad()
            fake = model["n"](model["g"](z))
            turned = fake.detach().t()
            d_loss = F.softplus(-model["d"](x)).mean() + F.softplus(model["d"](turned.t())).mean()
            d_loss.backward()
            d_opt.step()
            g_opt.zero_grad()
            g_loss = F.softplus(-model["d"](fake)).mean() + turned[1:3].square().mean()
            g_loss.backward()
            g_opt.step()
            return d_loss, g_loss, turned

        return World(model, step)

    batches = lambda index: (torch.randn(4, 6), torch.randn(4, 3))  # noqa: E731
    side_by_side(make, batches, regions=2, undriven=())


def test_a_scaled_step_updates_in_our_own_kernels_and_skips_as_in_eager():
    def make():
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            return loss, norm, scaler.get_scale()

        return World(model, step)

    def batches(index):
        x, y = rows(index)
        return (x * float("inf") if index == 4 else x), y

    explanation = side_by_side(make, batches, regions=2, calls=8)

    (optimizer,) = explanation.variants[0].optimizers
    assert (optimizer.fused, optimizer.note) == (True, "in stepgraph's own kernels")


def test_weights_that_are_parts_of_larger_tensors_are_driven():
    def make():
        model = mlp()
        model[0].weight = nn.Parameter(torch.randn(80)[7:55].view(8, 6))
        model[0].bias = nn.Parameter(torch.randn(17)[3:11])
        model[2].weight = nn.Parameter(torch.randn(12, 3)[3:11].t())
        return training(model)

    side_by_side(make, rows, undriven=())


def test_a_gradient_of_a_weight_with_gaps_is_laid_out_as_by_autograd():
    def make():
        model = mlp()
        model[0].weight = nn.Parameter(torch.randn(8, 11)[:, :6])  # with gaps between its rows
        return training(model)

    side_by_side(make, rows, undriven=())


def test_batches_that_lie_anywhere_in_the_data_are_driven():
    x, y = torch.randn(40, 6), torch.randint(3, (40,))

    side_by_side(
        lambda: training(mlp()),
        lambda index: (x[index : index + 4], y[index : index + 4]),
        calls=8,
        undriven=(),
    )


@pytest.mark.filterwarnings("ignore:grad and param do not obey")
def test_gradients_added_in_place_are_driven_in_the_layout_that_they_have():
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)

    def accumulating(net):
        def step(x, y):
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        return step

    plain, compiled = accumulating(twin), stepgraph.compile(accumulating(model), backend="inductor")
    for index in range(9):
        if index == 5:
            for net in (model, twin):
                net[0].weight.grad = net[0].weight.grad.t().contiguous().t()
        batch = rows(index)
        assert is_close(compiled(*batch), plain(*batch))
        assert_close_models(model, twin)
    assert set(drivers(compiled)) == {None}


@pytest.mark.parametrize("change", ["turned", "double"])
def test_a_weight_that_is_laid_out_otherwise_from_some_call_on_is_another_variant(change):
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    compiled = stepgraph.compile(training(model).step, backend="inductor", on_fallback="error")
    plain = training(twin).step

    for index in range(8):
        if index == 4:
            _change(model, change), _change(twin, change)
        x, y = rows(index)
        x = x.to(model[0].weight.dtype)
        assert is_close(compiled(x, y)[0], plain(x, y)[0])
        assert_close_models(model, twin)
    assert drivers(compiled) == [None, None]


def _change(model: nn.Sequential, how: str) -> None:
    weight = model[0].weight
    if how == "turned":
        weight.data = weight.data.t().contiguous().t()
    else:
        model.double()


def test_a_wrong_class_raises_as_in_eager_and_leaves_everything_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    twin = copy.deepcopy(model)
    compiled = stepgraph.compile(training(model).step, backend="inductor", on_fallback="error")
    plain = training(twin).step
    for index in range(3):
        compiled(*rows(index))
    assert drivers(compiled) == [None]
    before = copy.deepcopy(dict(model.named_parameters()))

    for wrong in (3, -1, -99, 1 << 40):
        x, y = rows(0)
        y[2] = wrong
        with pytest.raises(IndexError) as expected:
            plain(x, y)
        with pytest.raises(IndexError) as raised:
            compiled(x, y)
        assert str(raised.value) == str(expected.value)

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    ignored = torch.full((4,), -100)
    ignored[0] = 1
    assert compiled(x, ignored)[0].isfinite()


@pytest.mark.parametrize("shift", [0, 1], ids=["given", "computed"])
def test_one_hot_is_compiled_and_raises_for_a_wrong_class_as_in_eager(shift):
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(x, y):
        optimizer.zero_grad()
        classes = F.one_hot(y + shift if shift else y, 3 + shift)
        loss = (model(x) - classes[:, shift:]).square().mean()
        loss.backward()
        optimizer.step()
        return loss, classes

    compiled = stepgraph.compile(step, backend="inductor", on_fallback="error")
    for index in range(4):
        x, y = rows(index)
        assert torch.equal(compiled(x, y)[1], F.one_hot(y + shift, 3 + shift))
    assert {region.why for region in compiled.explain().variants[-1].regions} == {""}
    before = copy.deepcopy(list(model.parameters()))

    for wrong, words in ((3, "must be smaller than num_classes"), (-2, "must be non-negative")):
        y[2] = wrong
        with pytest.raises(RuntimeError, match=words):
            compiled(x, y)

    assert all(map(torch.equal, model.parameters(), before))


def test_a_probability_that_is_none_raises_as_in_eager():
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(x, factor):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy(model(x).sigmoid() * factor, torch.full((4, 3), 0.5))
        loss.backward()
        optimizer.step()
        return loss

    compiled = stepgraph.compile(step, backend="inductor", on_fallback="error")
    for index in range(4):
        assert compiled(rows(index)[0], torch.ones(())).isfinite()
    assert [region.why for region in compiled.explain().variants[-1].regions] == ["", ""]
    before = copy.deepcopy(list(model.parameters()))

    for wrong in (9.0, -1.0, float("nan")):
        with pytest.raises(RuntimeError, match="all elements of input should be between 0 and 1"):
            compiled(rows(0)[0], torch.tensor(wrong))

    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_a_division_by_zero_raises_as_in_eager(mode):
    torch.manual_seed(0)
    model = mlp()

    def step(x, y, k):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss, torch.div(y, k, rounding_mode=mode)

    compiled = stepgraph.compile(step, backend="inductor", on_fallback="error")
    k = torch.tensor([1, 2, 1, 3])
    for index in range(4):
        x, y = rows(index)
        assert torch.equal(compiled(x, y, k)[1], y // k)

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        compiled(x, y, k - 1)
    assert torch.equal(compiled(x, y, k)[1], y // k)


def test_a_short_last_batch_is_right_without_a_driver():
    sizes = [4, 4, 4, 4, 3, 4, 4, 3]

    side_by_side(
        lambda: training(mlp()),
        lambda index: rows(index, sizes[index]),
        calls=len(sizes),
        undriven=("numbers, sizes or layouts that vary",),
    )


def test_two_threads_drive_two_steps_at_once():
    torch.manual_seed(0)
    models = [mlp(), mlp()]
    twins = copy.deepcopy(models)
    steps = [
        stepgraph.compile(training(m).step, backend="inductor", on_fallback="error") for m in models
    ]
    plain = [training(m).step for m in twins]
    data = [rows(i) for i in range(300)]
    for step, eager in zip(steps, plain, strict=True):
        for batch in data[:4]:
            step(*batch), eager(*batch)

    def run(step, results):
        results.extend(step(*batch)[0] for batch in data[4:])

    losses: list[list[Any]] = [[], []]
    threads = [threading.Thread(target=run, args=pair) for pair in zip(steps, losses, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for step, eager, mine in zip(steps, plain, losses, strict=True):
        assert drivers(step) == [None]
        expected = [eager(*batch)[0] for batch in data[4:]]
        torch.testing.assert_close(torch.stack(mine), torch.stack(expected), rtol=1e-3, atol=1e-3)


def test_threads_that_share_a_step_change_nothing():
    was = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        side_by_side(
            lambda: training(nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 3))),
            lambda index: rows(index, 128),
            undriven=(),
        )
    finally:
        torch.set_num_threads(was)


def test_without_our_library_inductors_wrapper_runs_and_the_region_says_why(monkeypatch):
    monkeypatch.setattr(driver, "driver_library", lambda: "no C++ compiler")

    side_by_side(lambda: training(mlp()), rows, undriven=("no C++ compiler",))


def test_a_wrapper_that_cannot_be_read_runs_as_it_is(monkeypatch):
    def refuse(*_):
        raise Unreadable("unknown words")

    monkeypatch.setattr(inductor, "drive", refuse)
    torch.manual_seed(0)
    model = mlp()
    compiled = stepgraph.compile(training(model).step, backend="inductor", on_fallback="error")
    for index in range(3):
        compiled(*rows(index))
    before = [p.detach().clone() for p in model.parameters()]
    x, y = rows(0)
    y[0] = 3

    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        compiled(x, y)

    assert drivers(compiled) == ["unknown words"]
    assert all(map(torch.equal, model.parameters(), before))
