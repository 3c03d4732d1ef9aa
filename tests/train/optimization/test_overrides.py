"""Overridden hooks are part of the compiled step, with the same results."""

import pytest
import torch

from stepgraph import Callback
from train.worlds import Regression, assert_same_weights, made, quiet, regression_batches


class Overrides(Regression):
    """Changes gradients and clears them itself."""

    def on_before_backward(self, loss):
        self.seen = loss.detach()

    def backward(self, loss):
        (loss * 2).backward()

    def on_after_backward(self):
        for p in self.parameters():
            p.grad.mul_(0.5)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)

    def on_before_optimizer_step(self, optimizer):
        for p in self.parameters():
            p.grad.add_(0.01)


class OverridesAsBefore(Overrides):
    """The signature of the seed's time."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer, optimizer_idx):
        assert optimizer_idx == 0
        optimizer.zero_grad(set_to_none=False)


class Clips(Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        torch.nn.utils.clip_grad_value_(module.parameters(), 0.05)


@pytest.mark.parametrize("world", [Overrides, OverridesAsBefore])
def test_overridden_hooks_are_compiled(world):
    eager, compiled = made(world), made(world)
    trainer = quiet(callbacks=[Clips()], accumulate_grad_batches=2, compile=True)

    quiet(callbacks=[Clips()], accumulate_grad_batches=2).fit(eager, regression_batches())
    trainer.fit(compiled, regression_batches())

    assert_same_weights(eager, compiled)
    assert trainer.steps[0].explain().captured
    assert trainer.steps[0].explain().fallback_reason is None


def test_overridden_hooks_do_what_a_plain_loop_does():
    module, expected = made(Overrides), made(Regression)

    quiet(max_epochs=1).fit(module, regression_batches())

    opt = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for batch in regression_batches():
        opt.zero_grad()
        expected.compute_loss(batch).backward()
        for p in expected.parameters():
            p.grad.add_(0.01)
        opt.step()
    for left, right in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(left, right)


class HookThatPrints(Regression):
    def on_after_backward(self):
        print("gradients")  # noqa: T201


def test_a_hook_that_cannot_be_compiled_is_named(capsys):
    eager, module, trainer = made(HookThatPrints), made(HookThatPrints), quiet(compile=True)

    quiet().fit(eager, regression_batches())
    with pytest.warns(UserWarning, match="eagerly"):
        trainer.fit(module, regression_batches())

    assert_same_weights(eager, module)
    assert "print" in trainer.steps[0].explain().fallback_reason
    assert capsys.readouterr().out.count("gradients") == 2 * 15


class OwnOptimizer(torch.optim.SGD):
    """A user's subclass that evaluates the closure twice, as sharpness-aware methods do."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        super().step()
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Sharp(Regression):
    def configure_optimizers(self):
        return OwnOptimizer(self.parameters(), lr=0.05)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_optimizer_of_the_users_calls_the_closure_itself(compiled):
    module, expected = made(Sharp), made(Sharp)
    trainer = quiet(compile=compiled)

    trainer.fit(module, regression_batches())

    opt = expected.configure_optimizers()
    for _ in range(3):
        for batch in regression_batches():

            def closure(batch=batch):
                loss = expected.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                return loss

            opt.step(closure)
    assert_same_weights(expected, module)
    assert trainer.global_step == 15
    assert trainer.optimizer_steps == [15]


class SkipsUnderOwnStep(Sharp):
    """No loss for one batch, with an optimizer that needs its closure."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


def test_a_batch_without_a_loss_is_skipped_whatever_the_optimizer():
    trainer = quiet(max_epochs=1)

    trainer.fit(made(SkipsUnderOwnStep), regression_batches())

    assert trainer.global_step == 4
