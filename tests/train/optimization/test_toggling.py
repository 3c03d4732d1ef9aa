"""Toggles nest, survive exceptions, and leave every flag as it was."""

import pytest
import torch

import stepgraph
from stepgraph.errors import ConfigurationError
from train.worlds import GAN, image_batches, made, quiet


class Toggling(GAN):
    """Hands a training step of the test the module and its optimizers."""

    def __init__(self, step):
        super().__init__()
        self.automatic_optimization = False
        self.step = step

    def training_step(self, batch):
        g_opt, d_opt = self.optimizers()
        self.step(self, g_opt, d_opt)


def flags(module):
    """Whether G and D require gradients."""
    return module.G[0].weight.requires_grad, module.D[0].weight.requires_grad


def run(step):
    module = made(Toggling, step)
    trainer = quiet(max_epochs=1, limit_train_batches=1)
    trainer.fit(module, image_batches())
    return module


def test_only_the_toggled_optimizer_trains():
    seen = []

    def step(module, g_opt, d_opt):
        with g_opt.toggle_model():
            seen.append(flags(module))
        with d_opt.toggle_model(sync_grad=False):
            seen.append(flags(module))
        seen.append(flags(module))

    run(step)

    assert seen == [(True, False), (False, True), (True, True)]


def test_toggles_nest():
    seen = []

    def step(module, g_opt, d_opt):
        with g_opt.toggle_model():
            with d_opt.toggle_model():
                seen.append(flags(module))
            seen.append(flags(module))
        seen.append(flags(module))

    run(step)

    assert seen == [(False, True), (True, False), (True, True)]


@pytest.mark.parametrize("name", ["toggle_model", "toggled_optimizer"])
def test_an_exception_restores_the_flags(name):
    def step(module, g_opt, d_opt):
        scope = g_opt.toggle_model() if name == "toggle_model" else module.toggled_optimizer(g_opt)
        with pytest.raises(ZeroDivisionError), scope:
            raise ZeroDivisionError

    module = run(step)

    assert flags(module) == (True, True)
    assert module._updates.toggles.depth == 0


def test_frozen_parameters_stay_frozen():
    seen = []

    def step(module, g_opt, d_opt):
        module.G[2].requires_grad_(False)
        with g_opt.toggle_model():
            seen.append((module.G[0].weight.requires_grad, module.G[2].weight.requires_grad))

    module = run(step)

    assert seen == [(True, False)]
    assert not module.G[2].weight.requires_grad


def test_a_shared_parameter_is_on_in_both():
    seen = []

    class Shared(Toggling):
        def configure_optimizers(self):
            g = torch.optim.SGD([*self.G.parameters(), self.D[0].weight], lr=0.1)
            return g, torch.optim.SGD(self.D.parameters(), lr=0.1)

    def step(module, g_opt, d_opt):
        for opt in (g_opt, d_opt):
            with opt.toggle_model():
                seen.append((module.D[0].weight.requires_grad, module.D[0].bias.requires_grad))

    module = made(Shared, step)
    quiet(max_epochs=1, limit_train_batches=1).fit(module, image_batches())

    assert seen == [(True, False), (True, True)]


def test_toggle_and_untoggle_without_a_scope():
    seen = []

    def step(module, g_opt, d_opt):
        module.toggle_optimizer(g_opt, 0)
        seen.append(flags(module))
        module.untoggle_optimizer(0)
        module.toggle_optimizer(d_opt)
        seen.append(flags(module))
        module.untoggle_optimizer(d_opt)

    module = run(step)

    assert seen == [(True, False), (False, True)]
    assert flags(module) == (True, True)


def test_undoing_another_toggle_is_an_error():
    def step(module, g_opt, d_opt):
        module.toggle_optimizer(g_opt)
        with pytest.raises(ConfigurationError, match="without its toggle_optimizer"):
            module.untoggle_optimizer(d_opt)
        assert flags(module) == (True, False)
        module.untoggle_optimizer(g_opt)
        with pytest.raises(ConfigurationError, match="without its toggle_optimizer"):
            module.untoggle_optimizer(g_opt)

    run(step)


def test_an_unknown_optimizer_cannot_be_toggled():
    def step(module, g_opt, d_opt):
        stranger = torch.optim.SGD(module.parameters(), lr=0.1)
        with pytest.raises(ConfigurationError, match="does not belong"):
            module.toggle_optimizer(stranger)
        assert flags(module) == (True, True)

    run(step)


def test_compiled_toggles_leave_the_flags_as_they_were():
    class Compiled(GAN):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        @stepgraph.compile
        def training_step(self, batch):
            g_opt, d_opt = self.optimizers()
            for opt, part in ((g_opt, self.G), (d_opt, self.D)):
                self.toggle_optimizer(opt)
                opt.zero_grad()
                self.manual_backward(self.D(self.sample_G(6)).mean())
                opt.step()
                self.untoggle_optimizer(opt)
                assert part is not None

    module = made(Compiled)
    quiet(compile=True).fit(module, image_batches())

    assert flags(module) == (True, True)
    assert module.training_step.explain().captured
    assert module.training_step.explain().fallback_reason is None
