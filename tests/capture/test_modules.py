"""The modules that training steps are made of, each captured in one graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import (
    Program,
    assert_captured,
    assert_captured_or_explained,
    draw,
    draw_labels,
    mlp,
    regression,
    same_as_eager,
)


def trained(build, batch, loss_of=None):
    """A program that trains what `build` makes with momentum."""
    loss_of = loss_of or (lambda net, x, y: functional.mse_loss(net(x), y))

    def make():
        net = build()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = loss_of(net, x, y)
            loss.backward()
            optimizer.step()
            return loss

        return Program(step, batch)

    return make


def sequences(index):
    return draw(3, 5, 8, seed=index), draw(3, 5, 8, seed=-index - 1)


def pictures(index):
    return draw(4, 2, 6, 6, seed=index), draw_labels(4, below=3, seed=index)


def tokens(index):
    return draw_labels(3, 5, below=7, seed=index), draw_labels(3, 5, below=7, seed=-index)


def class_loss(net, x, y):
    return functional.cross_entropy(net(x), y)


def token_loss(net, x, y):
    return functional.cross_entropy(net(x).flatten(0, 1), y.flatten())


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip


def normalised():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def with_dropout():
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        heads = self.inward(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        return x + self.outward(mixed.transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(8, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x):
        return self.output(self.embedding(x).tanh())


class UsedTwice(nn.Module):
    """One layer applied three times."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x).tanh()
        return self.head(x)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = mlp(outputs=4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)
        return self.head(x)


MODULES = {
    "convolutions": (convolutional, pictures, class_loss),
    "batch norm": (normalised, regression, None),
    "dropout": (with_dropout, regression, None),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 7)),
        tokens,
        token_loss,
    ),
    "scaled dot product attention": (Attention, sequences, None),
    "multi-head attention": (SelfAttention, sequences, None),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        sequences,
        None,
    ),
    "tied weights": (Tied, tokens, token_loss),
    "a layer used three times": (UsedTwice, regression, None),
    "group norm and gelu": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.GELU(), nn.Linear(6, 2)),
        regression,
        None,
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))),
        regression,
        None,
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_module_trains_in_one_graph(name):
    assert_captured(same_as_eager(trained(*MODULES[name])))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_network_trains_exactly(kind):
    step = same_as_eager(trained(lambda: Recurrent(kind), sequences))

    assert_captured_or_explained(step)


def test_a_checkpointed_block_trains_exactly():
    assert_captured_or_explained(same_as_eager(trained(Checkpointed, regression)))


def test_spectral_norm_updates_its_own_buffers():
    def build():
        return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))

    assert_captured_or_explained(same_as_eager(trained(build, regression)))


def under_autocast(loss_of):
    def loss(net, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(net, x, y)

    return loss


def plain_loss(net, x, y):
    return functional.mse_loss(net(x).float(), y)


AUTOCAST = {
    "perceptron": (mlp, regression, plain_loss),
    "convolutions": (convolutional, pictures, class_loss),
    "batch norm": (normalised, regression, plain_loss),
    "attention": (Attention, sequences, plain_loss),
    "tied weights": (Tied, tokens, token_loss),
    "a layer used three times": (UsedTwice, regression, plain_loss),
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_the_module_trains_under_autocast(name):
    build, batch, loss_of = AUTOCAST[name]

    assert_captured(same_as_eager(trained(build, batch, under_autocast(loss_of))))


def test_a_weight_is_used_in_two_autocast_regions_of_one_step():
    def loss_of(net, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            first = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            second = net(x.flip(0))
        return functional.mse_loss(first.float() + second.float(), y)

    assert_captured(same_as_eager(trained(mlp, regression, loss_of)))


def test_an_autocast_region_is_left_for_a_part_in_full_precision():
    def loss_of(net, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = net[0](x)
            with torch.autocast("cpu", enabled=False):
                return functional.mse_loss(net[2](hidden.float()), y)

    assert_captured(same_as_eager(trained(mlp, regression, loss_of)))


def test_the_whole_step_runs_inside_autocast():
    def make():
        program = trained(UsedTwice, regression, plain_loss)()
        program.around = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        return program

    assert_captured_or_explained(same_as_eager(make))


@pytest.mark.parametrize("cached", [True, False])
def test_autocast_around_the_step_casts_again_where_eager_does(cached):
    def make():
        net = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = functional.mse_loss(net(net(x))[:, :2].float(), y)
            loss.backward()
            optimizer.step()
            return loss

        def around():
            return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached)

        return Program(step, regression, around=around)

    assert_captured(same_as_eager(make))


def test_a_model_in_double_precision_is_captured():
    def batch(index):
        x, y = regression(index)
        return x.double(), y.double()

    assert_captured(same_as_eager(trained(lambda: mlp().double(), batch)))


def test_a_model_in_bfloat16_is_captured():
    def batch(index):
        x, y = regression(index)
        return x.bfloat16(), y.bfloat16()

    assert_captured(same_as_eager(trained(lambda: mlp().bfloat16(), batch)))


def test_a_complex_parameter_is_captured_or_explained():
    class Phase(nn.Module):
        def __init__(self):
            super().__init__()
            self.phase = nn.Parameter(torch.randn(4, 2, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(torch.complex64) @ self.phase).abs()

    assert_captured_or_explained(same_as_eager(trained(Phase, regression)))


def test_parameters_that_are_not_contiguous_keep_their_strides():
    def build():
        net = mlp()
        net[0].weight = nn.Parameter(net[0].weight.detach().t().contiguous().t())
        return net

    assert_captured(same_as_eager(trained(build, regression)))


def test_weights_in_channels_last_keep_their_layout():
    def build():
        return convolutional().to(memory_format=torch.channels_last)

    assert_captured(same_as_eager(trained(build, pictures, class_loss)))


def test_a_scalar_and_an_empty_parameter_are_captured():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0))

        def forward(self, x):
            return x[:, :2] * self.scale + self.empty.sum()

    assert_captured(same_as_eager(trained(Odd, regression)))
