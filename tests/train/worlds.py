"""What the tests of the trainer share: batches, quiet trainers, comparisons bit for bit."""

import contextlib
import warnings

import torch
from torch import nn
from torch.nn import functional

from stepgraph import Module, Trainer
from support.harness import draw, mlp
from support.state_walk import Walk

BATCHES = 5
EPOCHS = 3


class Batches:
    """The same batches in every epoch, each time in new tensors, as a `DataLoader` has it."""

    def __init__(self, draw_one, count):
        self.draw_one, self.count = draw_one, count

    def __len__(self):
        return self.count

    def __iter__(self):
        return (self.draw_one(i) for i in range(self.count))


def regression_batches(count=BATCHES):
    return Batches(lambda i: (draw(6, 4, seed=i), draw(6, 2, seed=-i - 1)), count)


def image_batches(count=BATCHES):
    return Batches(lambda i: (draw(6, 8, seed=i), torch.zeros(6)), count)


def quiet(**options):
    """A trainer that writes nothing."""
    defaults = {"max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False}
    defaults["accelerator"] = "cpu"  # the loops they are compared with run there
    return Trainer(**{**defaults, "enable_progress_bar": False, "compile": False, **options})


class Regression(Module):
    """A perceptron; subclasses say how it is trained."""

    def __init__(self):
        super().__init__()
        self.model = mlp()

    def compute_loss(self, batch):
        x, y = batch
        return functional.mse_loss(self.model(x), y)

    def training_step(self, batch, batch_idx):
        return self.compute_loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class GAN(Module):
    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(0.2), nn.Linear(6, 8), nn.Tanh())
        self.D = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1), nn.Sigmoid())
        self.criterion = nn.BCELoss()

    def sample_z(self, n):
        return torch.randn(n, 3)

    def sample_G(self, n):  # noqa: N802 - the seed's name
        return self.G(self.sample_z(n))

    def configure_optimizers(self):
        g_opt = torch.optim.Adam(self.G.parameters(), lr=1e-2)
        d_opt = torch.optim.Adam(self.D.parameters(), lr=1e-2)
        return g_opt, d_opt


def made(world, *args, **kwargs):
    """A module with the same weights each time, and the same random numbers after it."""
    torch.manual_seed(0)
    return world(*args, **kwargs)


def fitted(world, batches, *, trainer=None, **options):
    """A module after a fit."""
    module = made(world)
    (trainer or quiet(**options)).fit(module, batches)
    return module


def looped(world, loop, batches):
    """A module after a plain PyTorch loop, `loop(module, batches)`."""
    module = made(world)
    loop(module, batches)
    return module


def assert_same_weights(left, right):
    """Parameters and buffers agree bit for bit."""
    walk = Walk()
    walk.compare("state_dict", dict(left.state_dict()), dict(right.state_dict()))


@contextlib.contextmanager
def tolerated(*categories):
    """Scope in which some warnings are none of the test's business."""
    with warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield
