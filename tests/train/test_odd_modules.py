"""Modules that are none of the seed's, against plain PyTorch: every part at once."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

import stepgraph
from stepgraph import Module
from support.harness import draw
from train.worlds import assert_same_weights, looped, made, quiet, regression_batches

N_CRITIC = 3


class WGAN(Module):
    """A gradient penalty needs a second derivative; the critic trains thrice as often."""

    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8))
        self.D = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))

    def penalty(self, real, fake):
        share = torch.rand(len(real), 1)
        mixed = (share * real + (1 - share) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.D(mixed).sum(), mixed, create_graph=True)
        return ((slope.norm(2, dim=1) - 1) ** 2).mean()

    def critic_loss(self, real):
        fake = self.G(torch.randn(len(real), 4)).detach()
        return self.D(fake).mean() - self.D(real).mean() + 10 * self.penalty(real, fake)

    def generator_loss(self, real):
        return -self.D(self.G(torch.randn(len(real), 4))).mean()

    def training_step(self, batch, batch_idx, optimizer_idx):
        loss = self.critic_loss(batch) if optimizer_idx == 0 else self.generator_loss(batch)
        self.log(("critic", "generator")[optimizer_idx], loss, on_epoch=True)
        return loss

    def optimizers_of(self):
        return [
            torch.optim.Adam(p.parameters(), lr=0.01, betas=(0.0, 0.9)) for p in (self.D, self.G)
        ]

    def configure_optimizers(self):
        critic, generator = self.optimizers_of()
        return [
            {"optimizer": critic, "frequency": N_CRITIC},
            {"optimizer": generator, "frequency": 1},
        ]


def wgan_loop(module, batches, epochs=2):
    critic, generator = module.optimizers_of()
    for _ in range(epochs):
        for i, real in enumerate(batches):
            trains_critic = i % (N_CRITIC + 1) < N_CRITIC
            frozen = module.G if trains_critic else module.D
            frozen.requires_grad_(False)
            loss = module.critic_loss(real) if trains_critic else module.generator_loss(real)
            opt = critic if trains_critic else generator
            opt.zero_grad()
            loss.backward()
            opt.step()
            frozen.requires_grad_(True)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_critic_trains_more_often_than_its_generator(compiled):
    batches = [draw(5, 8, seed=i) for i in range(6)]
    module, trainer = made(WGAN), quiet(max_epochs=2, compile=compiled)

    trainer.fit(module, batches)

    assert_same_weights(looped(WGAN, wgan_loop, batches), module)
    assert trainer.optimizer_steps == [10, 2]
    names = [str(step.explain()).partition(":")[0] for step in trainer.steps]
    assert (
        names
        == ["WGAN.training_step, optimizer 0", "WGAN.training_step, optimizer 1"][: 2 * compiled]
    )


class Replays(Module):
    """Learns from a memory that grows while it trains; a slow copy says what to aim at."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.q, self.target = (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)) for _ in range(2))
        self.target.load_state_dict(self.q.state_dict())
        self.target.requires_grad_(False)
        self.memory = []

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.q.parameters(), lr=0.01)

    def loss(self, x):
        with torch.no_grad():
            aim = x.sum(1) + 0.9 * self.target(x + 0.1).max(1).values
        return functional.smooth_l1_loss(self.q(x)[:, 0], aim)

    def learn(self, x):
        opt = self.optimizers()
        loss = self.loss(x)
        opt.zero_grad()
        self.manual_backward(loss)
        norm = self.clip_gradients(opt, 0.5)
        opt.step()
        self.log_dict({"loss": loss, "norm": norm})

    def training_step(self, batch, batch_idx):
        self.memory += batch
        if len(self.memory) >= 8:
            for _ in range(2):
                self.learn(torch.stack(random.sample(self.memory, 8)))
        if batch_idx % 3 == 2:
            self.target.load_state_dict(self.q.state_dict())


class ReplaysCompiled(Replays):
    learn = stepgraph.compile(Replays.learn, on_fallback="error")


def replays_loop(module, batches):
    opt = module.configure_optimizers()
    for _ in range(2):
        for i, batch in enumerate(batches):
            module.memory += batch
            for _ in range(2 * (len(module.memory) >= 8)):
                loss = module.loss(torch.stack(random.sample(module.memory, 8)))
                opt.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(module.q.parameters(), 0.5)
                opt.step()
            if i % 3 == 2:
                module.target.load_state_dict(module.q.state_dict())


@pytest.mark.parametrize("world", [Replays, ReplaysCompiled])
def test_a_part_of_a_manual_step_is_compiled(world):
    batches = [draw(3, 4, seed=i) for i in range(7)]
    random.seed(0)
    expected = looped(Replays, replays_loop, batches)
    module, trainer = made(world), quiet(max_epochs=2, compile=True)

    random.seed(0)
    trainer.fit(module, batches)

    assert_same_weights(expected, module)
    assert trainer.optimizer_steps == [24]
    assert trainer.global_step == 12


class TwoSchedules(Module):
    """One schedule counts steps, the other watches a validation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def loss(self, batch):
        x, y = batch
        return functional.mse_loss(self.b(torch.tanh(self.a(x))), y)

    def training_step(self, batch, batch_idx, optimizer_idx):
        return self.loss(batch)

    def validation_step(self, batch):
        self.log("val_loss", self.loss(batch))

    def optimizers_of(self):
        parts = self.a.parameters(), self.b.parameters()
        return torch.optim.Adam(parts[0], lr=0.05), torch.optim.SGD(parts[1], lr=0.3)

    def configure_optimizers(self):
        first, second = self.optimizers_of()
        cosine = {"scheduler": CosineAnnealingLR(first, 12), "interval": "step", "frequency": 2}
        plateau = ReduceLROnPlateau(second, factor=0.5, patience=0, threshold=0.5)
        return [first, second], [cosine, {"scheduler": plateau, "monitor": "val_loss"}]


def two_schedules_loop(module, batches):
    first, second = module.optimizers_of()
    cosine = CosineAnnealingLR(first, 12)
    plateau = ReduceLROnPlateau(second, factor=0.5, patience=0, threshold=0.5)
    steps = 0
    for _ in range(4):
        for batch in batches:
            for opt in (first, second):
                loss = module.loss(batch)
                opt.zero_grad()
                loss.backward()
                opt.step()
            steps += 1
            if steps % 2 == 0:
                cosine.step()
        with torch.no_grad():
            losses = [module.loss(batch).double() for batch in batches]
        plateau.step((sum(losses) / len(losses)).float())
    module.rates = [opt.param_groups[0]["lr"] for opt in (first, second)]


@pytest.mark.parametrize("compiled", [False, True])
def test_one_schedule_counts_and_the_other_watches(compiled):
    batches = regression_batches()
    module, trainer = made(TwoSchedules), quiet(max_epochs=4, compile=compiled)

    trainer.fit(module, batches, batches)

    expected = looped(TwoSchedules, two_schedules_loop, batches)
    assert_same_weights(expected, module)
    assert [opt.param_groups[0]["lr"] for opt in trainer.optimizers] == expected.rates
    assert expected.rates[1] < 0.3
    assert set(trainer.callback_metrics) == {"val_loss"}
