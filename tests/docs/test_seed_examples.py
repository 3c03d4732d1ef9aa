"""The manual examples of the seed document as plain PyTorch, twenty calls each.

Every example must be captured and must leave, after every call, what eager leaves.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional

from support.harness import Program, assert_captured, draw, mlp, regression, same_as_eager

CALLS = 20


def indexed(batch):
    """The batches of a program whose step also takes `batch_idx`."""
    return lambda index: (batch(index), index)


def images(index):
    """A batch of samples with labels that the step ignores."""
    return draw(6, 8, seed=index), torch.zeros(6)


class Minimal:
    def __init__(self):
        self.model = mlp()
        self.opt = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def compute_loss(self, batch):
        x, y = batch
        return functional.mse_loss(self.model(x), y)

    def training_step(self, batch, batch_idx):
        self.opt.zero_grad()
        loss = self.compute_loss(batch)
        loss.backward()
        self.opt.step()


class Accumulation(Minimal):
    n = 4

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(batch)
        loss.backward()

        # accumulate gradients of `n` batches
        if (batch_idx + 1) % self.n == 0:
            self.opt.step()
            self.opt.zero_grad()


class SimpleGAN:
    def __init__(self):
        self.G = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(0.2), nn.Linear(6, 8), nn.Tanh())
        self.D = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1), nn.Sigmoid())
        self.criterion = nn.BCELoss()
        self.g_opt = torch.optim.Adam(self.G.parameters(), lr=1e-3)
        self.d_opt = torch.optim.Adam(self.D.parameters(), lr=1e-3)
        self.logged = {}
        self._Z = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))

    def sample_z(self, n):
        return self._Z.sample((n,))

    def sample_G(self, n):  # noqa: N802 - the seed's name
        return self.G(self.sample_z(n))

    def errors_of_d(self, x, g_x, real_label, fake_label):
        real = self.criterion(self.D(x), real_label)
        fake = self.criterion(self.D(g_x.detach()), fake_label)
        return real + fake

    def log(self, g_loss, d_loss):
        self.logged.update({"g_loss": g_loss.detach(), "d_loss": d_loss.detach()})

    def training_step(self, batch, batch_idx):
        x, _ = batch
        batch_size = x.shape[0]
        real_label = torch.ones((batch_size, 1))
        fake_label = torch.zeros((batch_size, 1))
        g_x = self.sample_G(batch_size)

        # optimize the discriminator
        d_loss = self.errors_of_d(x, g_x, real_label, fake_label)
        self.d_opt.zero_grad()
        d_loss.backward()
        self.d_opt.step()

        # optimize the generator
        g_loss = self.criterion(self.D(g_x), real_label)
        self.g_opt.zero_grad()
        g_loss.backward()
        self.g_opt.step()

        self.log(g_loss, d_loss)


class QuietGAN(SimpleGAN):
    """The GAN that returns its losses and logs nothing."""

    def log(self, g_loss, d_loss):
        pass

    def training_step(self, batch, batch_idx):
        x, _ = batch
        real_label, fake_label = torch.ones((len(x), 1)), torch.zeros((len(x), 1))
        g_x = self.sample_G(len(x))
        d_loss = self.errors_of_d(x, g_x, real_label, fake_label)
        self.d_opt.zero_grad()
        d_loss.backward()
        self.d_opt.step()
        g_loss = self.criterion(self.D(g_x), real_label)
        self.g_opt.zero_grad()
        g_loss.backward()
        self.g_opt.step()
        return {"g_loss": g_loss, "d_loss": d_loss}


class ToggledGAN(SimpleGAN):
    """Accumulates over two batches; each half switches the other's parameters off."""

    sets_flag_of_batch = True

    @contextlib.contextmanager
    def toggled(self, others):
        before = [p.requires_grad for p in others.parameters()]
        for p in others.parameters():
            p.requires_grad = False
        yield
        for p, flag in zip(others.parameters(), before, strict=True):
            p.requires_grad = flag

    def discriminator_half(self, x, g_x, labels, last):
        d_loss = self.errors_of_d(x, g_x, *labels)
        d_loss.backward()
        if last:
            self.d_opt.step()
            self.d_opt.zero_grad()
        return d_loss

    def generator_half(self, g_x, labels, last):
        g_loss = self.criterion(self.D(g_x), labels[0])
        g_loss.backward()
        if last:
            self.g_opt.step()
            self.g_opt.zero_grad()
        return g_loss

    def training_step(self, batch, batch_idx):
        x, _ = batch
        if self.sets_flag_of_batch:
            x.requires_grad = True
        labels = torch.ones((len(x), 1)), torch.zeros((len(x), 1))
        last = (batch_idx + 1) % 2 == 0
        g_x = self.sample_G(len(x))
        with self.toggled(self.G):
            d_loss = self.discriminator_half(x, g_x, labels, last)
        with self.toggled(self.D):
            g_loss = self.generator_half(g_x, labels, last)
        self.log(g_loss, d_loss)


class ToggledOnlyModels(ToggledGAN):
    sets_flag_of_batch = False


class LoopToggledGAN(ToggledGAN):
    """The toggles written as loops in the step itself."""

    def training_step(self, batch, batch_idx):
        x, _ = batch
        labels = torch.ones((len(x), 1)), torch.zeros((len(x), 1))
        last = (batch_idx + 1) % 2 == 0
        g_x = self.sample_G(len(x))
        for p in self.G.parameters():
            p.requires_grad_(False)
        d_loss = self.discriminator_half(x, g_x, labels, last)
        for p in self.G.parameters():
            p.requires_grad_(True)
        for p in self.D.parameters():
            p.requires_grad_(False)
        g_loss = self.generator_half(g_x, labels, last)
        for p in self.D.parameters():
            p.requires_grad_(True)
        self.log(g_loss, d_loss)


class ScheduledEveryStep(Minimal):
    def __init__(self):
        super().__init__()
        self.sch = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.9)

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.sch.step()


class TwoSchedulers(Minimal):
    def __init__(self):
        super().__init__()
        self.head = torch.optim.Adam(self.model[2].parameters(), lr=0.01)
        self.sch1 = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 8)
        self.sch2 = torch.optim.lr_scheduler.StepLR(self.head, 3)

    def training_step(self, batch, batch_idx):
        self.opt.zero_grad()
        self.compute_loss(batch).backward()
        self.opt.step()
        self.head.step()
        self.sch1.step()
        self.sch2.step()


class ScheduledEveryN(ScheduledEveryStep):
    n = 3

    def training_step(self, batch, batch_idx):
        Minimal.training_step(self, batch, batch_idx)
        if (batch_idx + 1) % self.n == 0:
            self.sch.step()


class ScheduledEveryEpoch(ScheduledEveryStep):
    """The last batch of every fifth call's epoch steps the schedule."""

    is_last_batch = False

    def training_step(self, batch, batch_idx):
        Minimal.training_step(self, batch, batch_idx)
        if self.is_last_batch:
            self.sch.step()

    def between(self, index):
        self.is_last_batch = (index + 1) % 5 == 0


class Closure(Minimal):
    def training_step(self, batch, batch_idx):
        def closure():
            loss = self.compute_loss(batch)
            self.opt.zero_grad()
            loss.backward()
            return loss

        self.opt.step(closure=closure)


class ClosureOfLBFGS(Closure):
    def __init__(self):
        super().__init__()
        self.opt = torch.optim.LBFGS(self.model.parameters(), lr=0.5, max_iter=3)


class Wrapper:
    """What a trainer hands out: an object around the user's optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


class RawAccess(Minimal):
    def __init__(self):
        super().__init__()
        self.wrapped = Wrapper(self.opt)

    def optimizers(self):
        return self.wrapped

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer = optimizer.optimizer
        optimizer.zero_grad()
        self.compute_loss(batch).backward()
        optimizer.step()


EXAMPLES = {
    "minimal": (Minimal, regression),
    "accumulation": (Accumulation, regression),
    "GAN": (SimpleGAN, images),
    "GAN that returns its losses": (QuietGAN, images),
    "scheduler every step": (ScheduledEveryStep, regression),
    "two schedulers": (TwoSchedulers, regression),
    "scheduler every n steps": (ScheduledEveryN, regression),
    "scheduler every n epochs": (ScheduledEveryEpoch, regression),
    "closure": (Closure, regression),
    "raw optimizer access": (RawAccess, regression),
}
TOGGLING = {
    "context manager": ToggledOnlyModels,
    "context manager and the flag of the batch": ToggledGAN,
    "loops": LoopToggledGAN,
}


def run(world, batch, calls=CALLS):
    def make():
        made = world()
        between = getattr(made, "between", lambda index: None)
        return Program(made.training_step, indexed(batch), between=between)

    return same_as_eager(make, calls)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_is_captured_and_exact(name):
    step = run(*EXAMPLES[name])

    assert_captured(step)


def test_lbfgs_keeps_its_own_loop():
    step = run(ClosureOfLBFGS, regression)

    explanation = step.explain()
    assert explanation.captured or explanation.fallback_reason


@pytest.mark.parametrize("name", TOGGLING)
def test_toggling_is_captured_and_exact(name):
    step = run(TOGGLING[name], images)

    assert_captured(step)


def test_the_example_in_a_class_body_is_captured():
    def make(decorate):
        class Module(Minimal):
            training_step = decorate(Minimal.training_step)

        module = Module()
        return Program(module.training_step, indexed(regression), watch=module)

    assert_captured(same_as_eager(make, CALLS, decorated=True))
