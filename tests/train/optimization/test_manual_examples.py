"""Every manual example of the seed document against a plain PyTorch loop, bit for bit."""

import functools

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, StepLR

import stepgraph
from support.state_walk import Walk
from train.worlds import (
    EPOCHS,
    GAN,
    Manual,
    assert_same_weights,
    image_batches,
    looped,
    made,
    quiet,
    regression_batches,
)

N = 2


def plainly(step):
    return step


def minimal(decorate):
    class Minimal(Manual):
        @decorate
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            opt.zero_grad()
            loss = self.compute_loss(batch)
            self.manual_backward(loss)
            opt.step()

    return Minimal


def minimal_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in batches:
            opt.zero_grad()
            module.compute_loss(batch).backward()
            opt.step()


def accumulation(decorate):
    class Accumulation(Manual):
        @decorate
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()

            loss = self.compute_loss(batch)
            self.manual_backward(loss)

            # accumulate gradients of `n` batches
            if (batch_idx + 1) % N == 0:
                opt.step()
                opt.zero_grad()

    return Accumulation


def accumulation_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for i, batch in enumerate(batches):
            module.compute_loss(batch).backward()
            if (i + 1) % N == 0:
                opt.step()
                opt.zero_grad()


def gan(decorate):
    class SimpleGAN(GAN):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        @decorate
        def training_step(self, batch, batch_idx):
            g_opt, d_opt = self.optimizers()

            X, _ = batch  # noqa: N806
            batch_size = X.shape[0]

            real_label = torch.ones((batch_size, 1), device=self.device)
            fake_label = torch.zeros((batch_size, 1), device=self.device)

            g_X = self.sample_G(batch_size)  # noqa: N806

            # Optimize Discriminator
            d_x = self.D(X)
            errD_real = self.criterion(d_x, real_label)  # noqa: N806

            d_z = self.D(g_X.detach())
            errD_fake = self.criterion(d_z, fake_label)  # noqa: N806

            errD = errD_real + errD_fake  # noqa: N806

            d_opt.zero_grad()
            self.manual_backward(errD)
            d_opt.step()

            # Optimize Generator
            d_z = self.D(g_X)
            errG = self.criterion(d_z, real_label)  # noqa: N806

            g_opt.zero_grad()
            self.manual_backward(errG)
            g_opt.step()

            self.log_dict({"g_loss": errG, "d_loss": errD}, prog_bar=True)

    return SimpleGAN


def gan_loop(module, batches):
    g_opt, d_opt = module.configure_optimizers()
    for _ in range(EPOCHS):
        for x, _ in batches:
            real, fake = torch.ones(len(x), 1), torch.zeros(len(x), 1)
            generated = module.sample_G(len(x))
            loss = module.criterion(module.D(x), real)
            loss = loss + module.criterion(module.D(generated.detach()), fake)
            d_opt.zero_grad()
            loss.backward()
            d_opt.step()
            loss = module.criterion(module.D(generated), real)
            g_opt.zero_grad()
            loss.backward()
            g_opt.step()


def scheduled_every_step(decorate):
    class Scheduled(Manual):
        def configure_optimizers(self):
            opt = super().configure_optimizers()
            return opt, ExponentialLR(opt, 0.9)

        @decorate
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            opt.step()

            # single scheduler
            sch = self.lr_schedulers()
            sch.step()

    return Scheduled


def scheduled_every_step_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    sch = ExponentialLR(opt, 0.9)
    for _ in range(EPOCHS):
        for batch in batches:
            opt.zero_grad()
            module.compute_loss(batch).backward()
            opt.step()
            sch.step()


def two_schedulers(decorate):
    class TwoSchedulers(Manual):
        def configure_optimizers(self):
            opt1 = torch.optim.SGD(self.model[0].parameters(), lr=0.1)
            opt2 = torch.optim.Adam(self.model[2].parameters(), lr=0.1)
            return [opt1, opt2], [ExponentialLR(opt1, 0.9), StepLR(opt2, 2)]

        @decorate
        def training_step(self, batch, batch_idx):
            opts = self.optimizers()
            for opt in opts:
                opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            for opt in opts:
                opt.step()

            # multiple schedulers
            sch1, sch2 = self.lr_schedulers()
            sch1.step()
            sch2.step()

    return TwoSchedulers


def two_schedulers_loop(module, batches):
    opt1 = torch.optim.SGD(module.model[0].parameters(), lr=0.1)
    opt2 = torch.optim.Adam(module.model[2].parameters(), lr=0.1)
    sch1, sch2 = ExponentialLR(opt1, 0.9), StepLR(opt2, 2)
    for _ in range(EPOCHS):
        for batch in batches:
            opt1.zero_grad()
            opt2.zero_grad()
            module.compute_loss(batch).backward()
            for each in (opt1, opt2, sch1, sch2):
                each.step()


def scheduled_every_n(decorate):
    class Scheduled(Manual):
        def configure_optimizers(self):
            opt = super().configure_optimizers()
            return opt, ExponentialLR(opt, 0.9)

        @decorate
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            opt.step()

            sch = self.lr_schedulers()

            # step every `n` batches
            if (batch_idx + 1) % N == 0:
                sch.step()

            # step every `n` epochs
            if self.trainer.is_last_batch and (self.trainer.current_epoch + 1) % N == 0:
                sch.step()

    return Scheduled


def scheduled_every_n_loop(module, batches):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    sch = ExponentialLR(opt, 0.9)
    for epoch in range(EPOCHS):
        for i, batch in enumerate(batches):
            opt.zero_grad()
            module.compute_loss(batch).backward()
            opt.step()
            if (i + 1) % N == 0:
                sch.step()
            if i == len(batches) - 1 and (epoch + 1) % N == 0:
                sch.step()


def toggled_gan(decorate):
    class ToggledGAN(GAN):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        @decorate
        def training_step(self, batch, batch_idx):
            g_opt, d_opt = self.optimizers()

            X, _ = batch  # noqa: N806
            X.requires_grad = True
            batch_size = X.shape[0]

            real_label = torch.ones((batch_size, 1), device=self.device)
            fake_label = torch.zeros((batch_size, 1), device=self.device)

            # Sync and clear gradients
            # at the end of accumulation or
            # at the end of an epoch.
            is_last_batch_to_accumulate = (batch_idx + 1) % 2 == 0 or self.trainer.is_last_batch

            g_X = self.sample_G(batch_size)  # noqa: N806

            # Optimize Discriminator
            with d_opt.toggle_model(sync_grad=is_last_batch_to_accumulate):
                d_x = self.D(X)
                errD_real = self.criterion(d_x, real_label)  # noqa: N806

                d_z = self.D(g_X.detach())
                errD_fake = self.criterion(d_z, fake_label)  # noqa: N806

                errD = errD_real + errD_fake  # noqa: N806

                self.manual_backward(errD)
                if is_last_batch_to_accumulate:
                    d_opt.step()
                    d_opt.zero_grad()

            # Optimize Generator
            with g_opt.toggle_model(sync_grad=is_last_batch_to_accumulate):
                d_z = self.D(g_X)
                errG = self.criterion(d_z, real_label)  # noqa: N806

                self.manual_backward(errG)
                if is_last_batch_to_accumulate:
                    g_opt.step()
                    g_opt.zero_grad()

            self.log_dict({"g_loss": errG, "d_loss": errD}, prog_bar=True)

    return ToggledGAN


def toggled_gan_loop(module, batches):
    g_opt, d_opt = module.configure_optimizers()
    for _ in range(EPOCHS):
        for i, (x, _) in enumerate(batches):
            real, fake = torch.ones(len(x), 1), torch.zeros(len(x), 1)
            last = (i + 1) % 2 == 0 or i == len(batches) - 1
            generated = module.sample_G(len(x))
            module.G.requires_grad_(False)
            loss = module.criterion(module.D(x), real)
            loss = loss + module.criterion(module.D(generated.detach()), fake)
            loss.backward()
            if last:
                d_opt.step()
                d_opt.zero_grad()
            module.G.requires_grad_(True)
            module.D.requires_grad_(False)
            module.criterion(module.D(generated), real).backward()
            if last:
                g_opt.step()
                g_opt.zero_grad()
            module.D.requires_grad_(True)


def with_closure(decorate, optimizer=None):
    class Closure(Manual):
        def configure_optimizers(self):
            return (optimizer or torch.optim.SGD)(self.parameters(), lr=0.1)

        @decorate
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()

            def closure():
                loss = self.compute_loss(batch)
                opt.zero_grad()
                self.manual_backward(loss)
                return loss

            opt.step(closure=closure)

    return Closure


def with_closure_loop(module, batches):
    opt = module.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches:

            def closure(batch=batch):
                loss = module.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                return loss

            opt.step(closure)


def raw_access(decorate):
    class RawAccess(Manual):
        @decorate
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            # `optimizer` wraps the optimizer.
            # To access it, do the following.
            optimizer = optimizer.optimizer
            optimizer.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            optimizer.step()

    return RawAccess


LBFGS = functools.partial(torch.optim.LBFGS, max_iter=3)
EXAMPLES = {
    "minimal": (minimal, minimal_loop, regression_batches),
    "accumulation": (accumulation, accumulation_loop, regression_batches),
    "GAN": (gan, gan_loop, image_batches),
    "scheduler every step": (scheduled_every_step, scheduled_every_step_loop, regression_batches),
    "two schedulers": (two_schedulers, two_schedulers_loop, regression_batches),
    "scheduler every n": (scheduled_every_n, scheduled_every_n_loop, regression_batches),
    "toggled GAN": (toggled_gan, toggled_gan_loop, image_batches),
    "closure": (with_closure, with_closure_loop, regression_batches),
    "LBFGS": (
        functools.partial(with_closure, optimizer=LBFGS),
        with_closure_loop,
        regression_batches,
    ),
    "raw optimizer": (raw_access, minimal_loop, regression_batches),
}


def run_example(name, decorate, **options):
    make, loop, batches = EXAMPLES[name]
    world = make(decorate)
    module = made(world)
    trainer = quiet(**options)
    trainer.fit(module, batches())
    return module, trainer, looped(make(plainly), loop, batches())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_the_plain_loop_does(name):
    module, _, expected = run_example(name, plainly)

    assert_same_weights(expected, module)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_decorated_example_does_what_the_plain_loop_does(name):
    decorate = stepgraph.compile(on_fallback="silent")

    module, trainer, expected = run_example(name, decorate, compile=True)

    assert_same_weights(expected, module)
    _, eager, _ = run_example(name, plainly)
    Walk().compare("metrics", eager.callback_metrics, trainer.callback_metrics)
    assert ("g_loss" in eager.callback_metrics) is ("GAN" in name)
    assert eager.progress_bar_metrics == trainer.progress_bar_metrics
    assert module.training_step.explain().fallback_reason is None
    explanation = module.training_step.explain()
    parts = explanation.closures if name == "LBFGS" else [explanation]
    assert parts
    assert all(part.captured for part in parts)


def test_compile_false_runs_a_decorated_step_as_it_is():
    module, trainer, expected = run_example("minimal", stepgraph.compile, compile=False)

    assert_same_weights(expected, module)
    assert trainer.steps == ()
    assert not module.training_step.explain().captured
