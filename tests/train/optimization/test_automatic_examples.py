"""Every automatic example of the seed document against a plain PyTorch loop, bit for bit."""

import functools
import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import stepgraph
from train.worlds import (
    BATCHES,
    EPOCHS,
    GAN,
    Regression,
    assert_same_weights,
    image_batches,
    looped,
    made,
    quiet,
    regression_batches,
    tolerated,
)


class PlainRegression(Regression):
    pass


def plain_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in batches:
            loss = module.compute_loss(batch)
            opt.zero_grad()
            loss.backward()
            opt.step()


class Decorated(Regression):
    @stepgraph.compile
    def training_step(self, batch, batch_idx):
        return self.compute_loss(batch)


class ScheduledByEpoch(Regression):
    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return [opt], [StepLR(opt, 2, 0.5)]


def scheduled_by_epoch_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    sch = StepLR(opt, 2, 0.5)
    for _ in range(EPOCHS):
        for batch in batches:
            opt.zero_grad()
            module.compute_loss(batch).backward()
            opt.step()
        sch.step()


class AutomaticGAN(GAN):
    """Two optimizers, one `training_step` each."""

    def loss_of(self, batch, optimizer_idx):
        x, _ = batch
        real, fake = torch.ones(len(x), 1), torch.zeros(len(x), 1)
        generated = self.sample_G(len(x))
        if optimizer_idx == 0:
            return self.criterion(self.D(generated), real)
        loss = self.criterion(self.D(x), real)
        return loss + self.criterion(self.D(generated.detach()), fake)

    def training_step(self, batch, batch_idx, optimizer_idx):
        loss = self.loss_of(batch, optimizer_idx)
        if optimizer_idx == 0:
            self.log("g_loss", loss, prog_bar=True)
            return loss
        self.log("d_loss", loss, prog_bar=True)
        return {"loss": loss, "size": loss * 2}


def automatic_gan_loop(module, batches, d_every=1):
    optimizers = module.configure_optimizers()
    parts = module.G, module.D
    for _ in range(EPOCHS):
        for i, batch in enumerate(batches):
            for index, opt in enumerate(optimizers):
                if index == 1 and (i + 1) % d_every:
                    continue
                parts[1 - index].requires_grad_(False)
                loss = module.loss_of(batch, index)
                opt.zero_grad()
                loss.backward()
                opt.step()
                parts[1 - index].requires_grad_(True)


class EverySecondBatch(AutomaticGAN):
    # Alternating schedule for optimizer steps (e.g. GANs)
    def optimizer_step(
        self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure,
        on_tpu=False, using_native_amp=False, using_lbfgs=False,
    ):  # fmt: skip
        # update generator every step
        if optimizer_idx == 0:
            optimizer.step(closure=optimizer_closure)

        # update discriminator every 2 steps
        if optimizer_idx == 1 and (batch_idx + 1) % 2 == 0:
            optimizer.step(closure=optimizer_closure)


def every_second_batch_loop(module, batches):
    automatic_gan_loop(module, batches, d_every=2)


class WarmUp(Regression):
    warm_up = 8.0

    def __init__(self, learning_rate=0.1):
        super().__init__()
        self.save_hyperparameters()

    # learning rate warm-up
    def optimizer_step(
        self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure,
        on_tpu=False, using_native_amp=False, using_lbfgs=False,
    ):  # fmt: skip
        # skip the first steps
        if self.trainer.global_step < self.warm_up:
            lr_scale = min(1.0, float(self.trainer.global_step + 1) / self.warm_up)
            for pg in optimizer.param_groups:
                pg["lr"] = lr_scale * self.hparams.learning_rate

        # update params
        optimizer.step(closure=optimizer_closure)


class WarmUpToday(WarmUp):
    """The signature of today's Lightning."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        super().optimizer_step(epoch, batch_idx, optimizer, 0, optimizer_closure)


def warm_up_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    steps = 0
    for _ in range(EPOCHS):
        for batch in batches:
            if steps < WarmUp.warm_up:
                for pg in opt.param_groups:
                    pg["lr"] = min(1.0, float(steps + 1) / WarmUp.warm_up) * 0.1
            opt.zero_grad()
            module.compute_loss(batch).backward()
            opt.step()
            steps += 1


class Wrapped(Regression):
    def optimizer_step(
        self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure,
        on_tpu=False, using_native_amp=False, using_lbfgs=False,
    ):  # fmt: skip
        optimizer.step(closure=optimizer_closure)


class Unwrapped(Regression):
    def optimizer_step(
        self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure,
        on_tpu=False, using_native_amp=False, using_lbfgs=False,
    ):  # fmt: skip
        optimizer = optimizer.optimizer
        optimizer.step(closure=optimizer_closure)


class AutomaticLBFGS(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3)


def lbfgs_loop(module, batches):
    opt = module.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches:

            def closure(batch=batch):
                loss = module.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                return loss

            opt.step(closure)


class TwoOptimizers(Regression):
    """Two optimizers, no schedulers."""

    def configure_optimizers(self):
        first = torch.optim.Adam(self.model[0].parameters(), lr=0.1)
        return first, torch.optim.SGD(self.model[2].parameters(), lr=0.1)

    def training_step(self, batch, batch_idx, optimizer_idx):
        self.log("metric_to_track", 1.0, on_step=False, on_epoch=True)
        return self.compute_loss(batch)


class Plateau(TwoOptimizers):
    """Two optimizers, one scheduler for Adam only."""

    def configure_optimizers(self):
        opt1, opt2 = super().configure_optimizers()
        optimizers = [opt1, opt2]
        plateau = ReduceLROnPlateau(opt1, factor=0.5, patience=0)
        lr_schedulers = {"scheduler": plateau, "monitor": "metric_to_track"}
        return optimizers, lr_schedulers


class TwoSchedules(TwoOptimizers):
    """Two optimizers, two schedulers."""

    def configure_optimizers(self):
        opt1, opt2 = super().configure_optimizers()
        return [opt1, opt2], [StepLR(opt1, 1, 0.5), OneCycleLR(opt2, 0.4, total_steps=10)]


def two_optimizers_loop(module, batches, schedules_of=lambda opt1, opt2: []):
    optimizers = TwoOptimizers.configure_optimizers(module)
    schedules = schedules_of(*optimizers)
    for _ in range(EPOCHS):
        for batch in batches:
            for opt in optimizers:
                loss = module.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                opt.step()
        for advance in schedules:
            advance()


def plateau_loop(module, batches):
    def schedules(opt1, opt2):
        return [functools.partial(ReduceLROnPlateau(opt1, factor=0.5, patience=0).step, 1.0)]

    two_optimizers_loop(module, batches, schedules)


def two_schedules_loop(module, batches):
    def schedules(opt1, opt2):
        return [StepLR(opt1, 1, 0.5).step, OneCycleLR(opt2, 0.4, total_steps=10).step]

    two_optimizers_loop(module, batches, schedules)


EXAMPLES = {
    "plain": (PlainRegression, plain_loop, regression_batches),
    "decorated": (Decorated, plain_loop, regression_batches),
    "scheduled by epoch": (ScheduledByEpoch, scheduled_by_epoch_loop, regression_batches),
    "Adam and SGD": (TwoOptimizers, two_optimizers_loop, regression_batches),
    "a schedule for Adam only": (Plateau, plateau_loop, regression_batches),
    "two schedules": (TwoSchedules, two_schedules_loop, regression_batches),
    "two optimizers": (AutomaticGAN, automatic_gan_loop, image_batches),
    "every second batch": (EverySecondBatch, every_second_batch_loop, image_batches),
    "warm-up": (WarmUp, warm_up_loop, regression_batches),
    "warm-up, today's signature": (WarmUpToday, warm_up_loop, regression_batches),
    "optimizer_step": (Wrapped, plain_loop, regression_batches),
    "optimizer_step with the raw optimizer": (Unwrapped, plain_loop, regression_batches),
    "LBFGS": (AutomaticLBFGS, lbfgs_loop, regression_batches),
}


def run_example(name, **options):
    world, loop, batches = EXAMPLES[name]
    module, trainer = made(world), quiet(**options)
    with tolerated(RuntimeWarning):  # OneCycleLR by epochs, as the seed has it
        trainer.fit(module, batches())
    return module, trainer, looped(world, loop, batches())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_the_plain_loop_does(name):
    module, trainer, expected = run_example(name)

    assert_same_weights(expected, module)
    assert trainer.global_step == EPOCHS * BATCHES


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_compiled_example_does_what_the_plain_loop_does(name):
    module, trainer, expected = run_example(name, compile=True)

    assert_same_weights(expected, module)
    if not any(step.hosted for step in trainer.loop.automatic):
        assert all(step.explain().captured for step in trainer.steps)
        assert all(step.explain().fallback_reason is None for step in trainer.steps)


def test_an_optimizer_whose_closure_was_not_called_does_nothing():
    _, trainer, _ = run_example("every second batch")

    assert trainer.optimizer_steps == [EPOCHS * BATCHES, EPOCHS * (BATCHES // 2)]


def test_a_plateau_schedule_sees_the_metric_of_the_epoch():
    module, trainer = made(Plateau), quiet(max_epochs=4)

    trainer.fit(module, regression_batches())

    rates = [opt.param_groups[0]["lr"] for opt in trainer.optimizers]
    assert rates == [0.1 * 0.5**3, 0.1]
    assert trainer.callback_metrics["metric_to_track"] == 1.0


def test_two_optimizers_with_two_schedules():
    module, trainer = made(TwoSchedules), quiet()

    with pytest.warns(RuntimeWarning, match="OneCycleLR"):
        trainer.fit(module, regression_batches())

    first, second = (opt.param_groups[0]["lr"] for opt in trainer.optimizers)
    assert first == 0.1 * 0.5**EPOCHS
    assert [s.last_epoch for s in trainer.schedulers] == [EPOCHS, EPOCHS]
    reference = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    cycle = OneCycleLR(reference, 0.4, total_steps=10)
    for _ in range(EPOCHS):
        reference.step()
        cycle.step()
    assert math.isclose(second, reference.param_groups[0]["lr"])
