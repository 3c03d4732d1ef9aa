"""Precision and clipping: the right gradients, once unscaled, and schedules that wait."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

import stepgraph
from stepgraph import Module
from stepgraph.errors import ConfigurationError
from support.harness import draw
from train.worlds import (
    EPOCHS,
    Manual,
    Regression,
    assert_same_weights,
    made,
    quiet,
    regression_batches,
)

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def mixed_loop(module, batches, dtype, clip=None):
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    for _ in range(EPOCHS):
        for batch in batches:
            with torch.autocast("cpu", dtype=dtype):
                loss = module.compute_loss(batch)
            opt.zero_grad()
            scaler.scale(loss).backward()
            if clip is not None:
                scaler.unscale_(opt)
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            scaler.step(opt)
            scaler.update()


@pytest.mark.parametrize("precision", AUTOCAST)
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("compiled", [False, True])
def test_mixed_precision_is_what_a_plain_loop_does(precision, clip, compiled):
    module, expected = made(Regression), made(Regression)

    trainer = quiet(precision=precision, gradient_clip_val=clip, compile=compiled)
    trainer.fit(module, regression_batches())
    mixed_loop(expected, regression_batches(), AUTOCAST[precision], clip)

    assert_same_weights(expected, module)
    assert all(step.explain().captured for step in trainer.steps)
    assert all(step.explain().fallback_reason is None for step in trainer.steps)


@pytest.mark.parametrize("precision", AUTOCAST)
@pytest.mark.parametrize("compiled", [False, True])
def test_manual_steps_run_in_mixed_precision(precision, compiled):
    class Steps(Manual):
        @stepgraph.compile(on_fallback="silent")
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            loss = self.compute_loss(batch)
            opt.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(opt, gradient_clip_val=0.05)
            opt.step()

    module, expected = made(Steps), made(Regression)
    quiet(precision=precision, compile=compiled).fit(module, regression_batches())
    mixed_loop(expected, regression_batches(), AUTOCAST[precision], 0.05)

    assert_same_weights(expected, module)


class TwoUpdates(Manual):
    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        for _ in range(2):
            loss = self.compute_loss(batch)
            opt.zero_grad()
            self.manual_backward(loss)
            opt.step()
        return {"loss": loss}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert not outputs["loss"].requires_grad


@pytest.mark.parametrize("compiled", [False, True])
def test_a_second_forward_sees_the_weights_of_the_first_update(compiled):
    """Autocast's cache would cast them once for the whole step."""
    world = type(
        "World", (TwoUpdates,), {"training_step": stepgraph.compile(TwoUpdates.training_step)}
    )
    module, expected = made(world), made(Regression)
    trainer = quiet(precision="bf16-mixed", max_epochs=2, compile=compiled)

    trainer.fit(module, regression_batches())

    opt = expected.configure_optimizers()
    for _ in range(2):
        for batch in regression_batches():
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = expected.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                opt.step()
    assert_same_weights(expected, module)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_a_true_precision_casts_the_module_and_the_batch(precision, dtype):
    seen = []

    class Watches(Regression):
        def training_step(self, batch, batch_idx):
            seen.append((batch[0].dtype, torch.zeros(1).dtype))
            return super().training_step(batch, batch_idx)

    module = made(Watches)
    quiet(max_epochs=1, limit_train_batches=1, precision=precision).fit(
        module, regression_batches()
    )

    assert module.model[0].weight.dtype == dtype
    assert seen == [(dtype, dtype)]
    assert torch.get_default_dtype() is torch.float32


class ClipsByValue(Manual):
    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        before = [p.grad.clone() for p in self.parameters()]
        norm = self.clip_gradients(opt, 0.01, "value")
        assert torch.equal(norm, nn.utils.get_total_norm(before))
        assert all(p.grad.abs().max() <= 0.01 for p in self.parameters())


def test_clipping_by_value_returns_the_norm_before():
    quiet(max_epochs=1).fit(made(ClipsByValue), regression_batches())


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_manual_clipping_sees_true_gradients(precision):
    norms = []

    class Clips(Manual):
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            norms.append(float(self.clip_gradients(opt, gradient_clip_val=0.1)))
            clipped = nn.utils.get_total_norm([p.grad for p in self.parameters()])
            assert float(clipped) <= 0.1001
            opt.step()

    module = made(Clips)
    quiet(max_epochs=1, limit_train_batches=1, precision=precision).fit(
        module, regression_batches()
    )

    assert 0.1 < norms[0] < 10.0


class TwoLosses(Module):
    """Both backwards before both steps, as in the scaler's worst case."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.a, self.b)]

    def losses(self, batch):
        return self.a(batch).mean(), self.b(batch).mean()

    def training_step(self, batch, batch_idx):
        opts = self.optimizers()
        for opt in opts:
            opt.zero_grad()
        for loss in self.losses(batch):
            self.manual_backward(loss)
        for opt in opts:
            opt.step()


def test_the_loss_scale_stays_between_two_optimizers():
    batches = [draw(4, 2, seed=i) for i in range(4)]
    module, expected = made(TwoLosses), made(TwoLosses)
    trainer = quiet(max_epochs=1, precision="16-mixed")
    trainer.precision = GrowsEveryStep("16-mixed")

    trainer.fit(module, batches)

    opts, scaler = expected.configure_optimizers(), torch.amp.GradScaler("cpu", growth_interval=1)
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.float16):
            losses = expected.losses(batch)
        for opt in opts:
            opt.zero_grad()
        for loss in losses:
            scaler.scale(loss).backward()
        for opt in opts:
            scaler.step(opt)
        scaler.update()
    assert_same_weights(expected, module)
    assert trainer.updates.scaler.get_scale() == scaler.get_scale()


class GrowsEveryStep(type(quiet().precision)):
    def scaler(self):
        return torch.amp.GradScaler("cpu", growth_interval=1)


class Overflows(Regression):
    """The gradients of some batches are infinite."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(batch)
        return loss * float("inf") if batch_idx in self.at else loss

    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return opt, {"scheduler": ExponentialLR(opt, 0.5), "interval": "step"}


@pytest.mark.parametrize("compiled", [False, True])
def test_an_overflow_updates_nothing_and_advances_no_schedule(compiled):
    module = made(Overflows, {1, 3})
    trainer = quiet(max_epochs=1, precision="16-mixed", compile=compiled)

    trainer.fit(module, regression_batches(5))

    assert trainer.global_step == 3
    assert trainer.optimizer_steps == [3]
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**3
    assert trainer.updates.scaler.get_scale() == 2.0**16 / 4
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_manual_step_without_gradients_is_no_update():
    class Idle(Manual):
        def training_step(self, batch, batch_idx):
            self.optimizers().step()

    trainer = quiet(max_epochs=1, precision="16-mixed")
    trainer.fit(made(Idle), regression_batches())

    assert trainer.global_step == 0


class Twice(Manual):
    """From the third batch on a second update in the same batch, as with several critics."""

    clips = False

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        for i in range(1 if batch_idx < 2 else 2):
            opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            if self.clips:
                self.clip_gradients(opt, 0.1)
            if not self.clips or i == 0:
                opt.step()


class ClipsAfterwards(Twice):
    clips = True


@pytest.mark.parametrize("world", [Twice, ClipsAfterwards])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_second_update_in_a_batch_is_an_error_with_a_loss_scale(world, compiled):
    """A `GradScaler` refuses it as well, in other words and with the first update done."""
    step = stepgraph.compile(Twice.training_step, on_fallback="silent")
    decorated = type("Decorated", (world,), {"training_step": step})
    trainer, module = quiet(precision="16-mixed", compile=compiled), made(decorated)

    with pytest.raises(ConfigurationError, match="second update") as caught:
        trainer.fit(module, regression_batches())

    assert "bf16-mixed" in str(caught.value)
    assert trainer.global_step == 2
    parameter = torch.zeros(1, requires_grad=True)
    opt, scaler = torch.optim.SGD([parameter], lr=0.1), torch.amp.GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    scaler.step(opt)
    with pytest.raises(RuntimeError, match=r"after step|since the last"):
        scaler.unscale_(opt) if world.clips else scaler.step(opt)


def test_without_a_loss_scale_an_optimizer_steps_as_often_as_it_likes():
    trainer = quiet(max_epochs=1)

    trainer.fit(made(Twice), regression_batches(4))

    assert trainer.optimizer_steps == [6]


def test_hooks_see_unscaled_and_unclipped_gradients():
    seen = []

    class Watches(Regression):
        def on_before_optimizer_step(self, optimizer):
            seen.append(float(nn.utils.get_total_norm([p.grad for p in self.parameters()])))

    for precision in ("32-true", "16-mixed"):
        quiet(max_epochs=1, limit_train_batches=1, precision=precision, gradient_clip_val=1e-3).fit(
            made(Watches), regression_batches()
        )

    assert seen[0] > 0.1
    assert abs(seen[0] - seen[1]) < 0.01


def test_clipping_can_be_overridden():
    class Clips(Regression):
        def configure_gradient_clipping(
            self, optimizer, gradient_clip_val, gradient_clip_algorithm
        ):
            limit = gradient_clip_val if self.current_epoch == 0 else gradient_clip_val / 2
            self.clip_gradients(optimizer, limit, gradient_clip_algorithm)
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters()])
            assert float(norm) <= limit * 1.001

    quiet(gradient_clip_val=0.01).fit(made(Clips), regression_batches())


def test_lbfgs_has_no_loss_scale():
    class Searches(Regression):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(ConfigurationError, match="LBFGS"):
        quiet(precision="16-mixed").fit(made(Searches), regression_batches())
