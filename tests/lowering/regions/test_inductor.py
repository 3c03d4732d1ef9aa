"""Steps with `backend="inductor"` against the same steps run eagerly."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import stepgraph
from stepgraph import torch_private
from stepgraph.lowering.closeness import is_close
from support.inductor_beside_eager import World, assert_close_models, mlp, rows, side_by_side

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.slow,  # a C++ compiler for each step
]


def test_a_step_with_clipping_and_a_schedule_is_one_region_and_a_fused_update():
    def make():
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        history: list[Any] = []

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            history.append(loss.detach())
            return loss, norm

        return World(model, step)

    explanation = side_by_side(make, rows)

    (optimizer,) = explanation.variants[0].optimizers
    assert optimizer.fused
    assert explanation.captures == 1


def test_dropout_and_batch_norm_draw_and_count_as_in_eager():
    def make():
        features = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        model = nn.Sequential(features, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x + torch.randn_like(x)), y)
            loss.backward()
            optimizer.step()
            return loss

        return World(model, step)

    side_by_side(make, lambda index: (torch.randn(5, 2, 6, 6), torch.randint(3, (5,))))


class _Attentive(nn.Module):
    """A residual block whose result attends over its own pixels, one view after another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.query = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(x + self.second(F.relu(self.norm(self.first(x)))))
        query, key = self.query(hidden).flatten(2), hidden.flatten(2)
        attention = torch.softmax(query.transpose(1, 2) @ key, -1)
        attended = (key @ attention.transpose(1, 2)).view(hidden.shape)
        return hidden + attended


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_between_views_return_tensors_laid_out_as_in_eager(layout):
    def make():
        blocks = nn.Sequential(_Attentive(4), nn.MaxPool2d(2), _Attentive(4))
        grow = nn.ConvTranspose2d(4, 2, 2, stride=2)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), blocks, grow)
        model = model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step(x):
            optimizer.zero_grad()
            features = blocks(model[0](x))
            images = grow(features)
            loss = (images - x).square().mean()
            loss.backward()
            optimizer.step()
            return loss, features.detach(), images.detach()

        return World(model, step)

    side_by_side(make, lambda _: (torch.randn(3, 2, 8, 8).contiguous(memory_format=layout),))


_SHAPES = {
    "one image more": lambda index: (3 + index, 2, 8, 9),
    "larger images": lambda index: (3, 2, 8 + index, 9 + index),
}


@pytest.mark.parametrize("varying", _SHAPES)
def test_convolutions_of_sizes_that_vary_return_features_laid_out_as_in_eager(varying):
    def make():
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(x):
            optimizer.zero_grad()
            features = model(x)
            loss = features.square().mean()
            loss.backward()
            optimizer.step()
            return loss, features.detach()

        return World(model, step)

    explanation = side_by_side(make, lambda index: (torch.randn(_SHAPES[varying](index)),))

    assert explanation.captures == 2  # one for the first size, one for all others


def test_gradients_accumulate_in_place():
    def make():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(x, y, last):
            loss = F.cross_entropy(model(x), y) / 2
            loss.backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()
            return loss

        return World(model, step)

    explanation = side_by_side(make, lambda i: (*rows(i), i % 3 == 2), calls=10)

    assert explanation.captures == 3


def test_a_gan_is_two_regions():
    def make():
        model = nn.ModuleDict({"g": nn.Linear(3, 6), "d": nn.Linear(6, 1)})
        g_opt = torch.optim.SGD(model["g"].parameters(), lr=0.01)
        d_opt = torch.optim.Adam(model["d"].parameters(), lr=0.01)

        def step(x, z):
            d_opt.zero_grad()
            fake = model["g"](z)
            real_loss = F.softplus(-model["d"](x)).mean()
            d_loss = real_loss + F.softplus(model["d"](fake.detach())).mean()
            d_loss.backward()
            d_opt.step()
            g_opt.zero_grad()
            g_loss = F.softplus(-model["d"](fake)).mean()
            g_loss.backward()
            g_opt.step()
            return d_loss, g_loss

        return World(model, step)

    side_by_side(make, lambda index: (torch.randn(4, 6), torch.randn(4, 3)), regions=2)


def test_batches_of_any_size_are_two_captures():
    def make():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(x, y):
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            return loss, logits.detach()

        return World(model, step)

    sizes = [4, 4, 4, 6, 6, 7, 5, 64, 3]

    explanation = side_by_side(make, lambda i: rows(i, sizes[i]), calls=len(sizes))

    assert explanation.captures == 2


def test_views_and_writes_in_place_are_as_in_eager():
    def make():
        model = mlp()
        model.register_buffer("mean", torch.zeros(6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(x, y):
            model.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            optimizer.zero_grad()
            hidden = model[0](x - model.mean)
            hidden.mul_(2)
            logits = model[2](model[1](hidden))
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            return {"loss": loss, "first": logits.detach()[0], "turned": logits.detach().t()}

        return World(model, step)

    side_by_side(make, rows)


def test_a_size_that_depends_on_values_cuts_the_step():
    def make():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(x, y):
            optimizer.zero_grad()
            logits = model(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            kept = torch.nonzero(losses.detach() > 0.5).flatten()
            loss = losses[kept].sum()
            loss.backward()
            optimizer.step()
            return loss

        return World(model, step)

    side_by_side(make, rows, regions=None)


def test_a_region_that_inductor_refuses_runs_eagerly_and_says_so(monkeypatch):
    def refuse(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler in this test\nand more lines")

    monkeypatch.setattr(torch_private, "compile_inference", refuse)
    model = mlp()
    twin = copy.deepcopy(model)

    def make(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    compiled, plain = stepgraph.compile(make(model), backend="inductor"), make(twin)
    for index in range(4):
        torch.manual_seed(index)
        batch = rows(index)
        assert torch.equal(compiled(*batch), plain(*batch))

    (region,) = compiled.explain().variants[0].regions
    assert not region.compiled
    assert region.why == "Inductor refuses it: no compiler in this test"
    assert "eager: Inductor refuses it" in str(compiled.explain())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_the_options_mean_the_same_as_with_the_eager_backend():
    def make():
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return model, step

    options = {"accumulate": 2, "clip_norm": 0.1, "verify": 1, "on_fallback": "error"}
    (model, step), (twin, twin_step) = make(), make()
    compiled = stepgraph.compile(step, backend="inductor", **options)
    expected = stepgraph.compile(twin_step, backend="eager", **options)

    for index in range(10):
        torch.manual_seed(index)
        batch = rows(index)
        assert is_close(compiled(*batch), expected(*batch))
        assert_close_models(model, twin)

    variants = compiled.explain().variants
    assert all(region.compiled for v in variants for region in v.regions)
    assert any(optimizer.fused for v in variants for optimizer in v.optimizers)


def test_verify_tries_a_compiled_region_again():
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @stepgraph.compile(backend="inductor", verify=3)
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for index in range(3):
        step(*rows(index))
    (region,) = step._variants[0].rewritten.lowered.regions
    wrong = region._compiled
    region._compiled = lambda inputs: [result * 2 for result in wrong(inputs)]

    with pytest.raises(stepgraph.errors.VerificationError, match="region_0: result 0"):
        step(*rows(3))


def test_an_index_out_of_range_raises_as_in_eager():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @stepgraph.compile(backend="inductor", on_fallback="error")
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(4):
        step(torch.tensor([1, 2]), torch.tensor([0, 2]))
    before = [p.detach().clone() for p in model.parameters()]

    with pytest.raises(IndexError, match="index out of range"):
        step(torch.tensor([1, 10]), torch.tensor([0, 2]))
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        step(torch.tensor([1, 2]), torch.tensor([0, 3]))
    assert all(map(torch.equal, model.parameters(), before))
    assert step(torch.tensor([1, 2]), torch.tensor([0, -100])).isfinite()
