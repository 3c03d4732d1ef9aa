"""What `self.optimizers()` returns is the optimizer, in both directions."""

import copy
import pickle

import pytest
import torch

import stepgraph
from stepgraph import OptimizerWrapper
from stepgraph.errors import ConfigurationError
from train.worlds import Manual, Regression, assert_same_weights, made, quiet, regression_batches


@pytest.fixture
def fitted():
    """A trained module and its wrapped optimizer."""
    module, trainer = made(Regression), quiet(max_epochs=1)
    trainer.fit(module, regression_batches())
    return module, trainer.optimizers[0]


def test_it_passes_for_the_optimizer(fitted):
    _, wrapper = fitted

    assert isinstance(wrapper, torch.optim.Optimizer)
    assert isinstance(wrapper, torch.optim.SGD)
    assert type(wrapper) is OptimizerWrapper
    assert type(wrapper.optimizer) is torch.optim.SGD


def test_reads_and_writes_reach_the_optimizer(fitted):
    _, wrapper = fitted
    raw = wrapper.optimizer

    wrapper.param_groups[0]["lr"] = 0.25
    wrapper.remark = "mine"

    assert wrapper.state is raw.state
    assert raw.param_groups[0]["lr"] == 0.25
    assert raw.remark == "mine"


def test_load_state_dict_reaches_the_optimizer(fitted):
    _, wrapper = fitted
    saved = copy.deepcopy(wrapper.state_dict())
    saved["param_groups"][0]["lr"] = 0.125
    saved["state"][0]["momentum_buffer"].fill_(7.0)

    wrapper.load_state_dict(saved)

    assert wrapper.optimizer.param_groups[0]["lr"] == 0.125
    first = wrapper.optimizer.param_groups[0]["params"][0]
    assert torch.all(wrapper.optimizer.state[first]["momentum_buffer"] == 7.0)


def test_replacing_param_groups_reaches_the_optimizer(fitted):
    _, wrapper = fitted
    groups = [dict(wrapper.param_groups[0], lr=0.5)]

    wrapper.param_groups = groups

    assert wrapper.optimizer.param_groups is groups


def test_a_schedule_may_be_made_of_the_wrapper(fitted):
    module, wrapper = fitted
    schedule = torch.optim.lr_scheduler.ExponentialLR(wrapper, 0.5)

    module.compute_loss(next(iter(regression_batches()))).backward()
    wrapper.step()
    schedule.step()

    assert wrapper.optimizer.param_groups[0]["lr"] == 0.05


def test_step_returns_what_the_closure_returns(fitted):
    _, wrapper = fitted

    assert wrapper.step() is None
    assert wrapper.step(closure=lambda: 3.5) == 3.5


def test_step_passes_keywords_on():
    seen = []

    class Keywords(torch.optim.SGD):
        def step(self, closure=None, *, flavour="plain"):
            seen.append(flavour)
            return super().step(closure)

    class Uses(Manual):
        def configure_optimizers(self):
            return Keywords(self.parameters(), lr=0.1)

        def training_step(self, batch):
            self.optimizers().step(flavour="sharp")

    quiet(max_epochs=1, limit_train_batches=1).fit(made(Uses), regression_batches())

    assert seen == ["sharp"]


def test_a_closure_that_cannot_be_called_is_an_error(fitted):
    _, wrapper = fitted

    with pytest.raises(ConfigurationError, match="closure that can be called"):
        wrapper.step(closure=3)


def test_a_module_can_be_copied_without_its_trainer(fitted):
    module, _ = fitted

    twin = pickle.loads(pickle.dumps(module))

    assert torch.equal(twin.model[0].weight, module.model[0].weight)
    with pytest.raises(ConfigurationError, match="not attached"):
        twin.optimizers()


def test_one_optimizer_is_no_list_and_several_are(fitted):
    module, wrapper = fitted

    assert module.optimizers() is wrapper
    assert module.optimizers(use_wrappers=False) is wrapper.optimizer


def test_schedulers_come_back_as_they_were_given():
    class Scheduled(Manual):
        count = 0

        def configure_optimizers(self):
            opt = super().configure_optimizers()
            self.made = [torch.optim.lr_scheduler.ConstantLR(opt, 1.0) for _ in range(self.count)]
            return [opt], self.made

        def training_step(self, batch):
            self.found = self.lr_schedulers()

    for count in range(3):
        module = made(type("Scheduled", (Scheduled,), {"count": count}))
        quiet(max_epochs=1, limit_train_batches=1).fit(module, regression_batches())
        expected = [None, module.made[0] if count else None, module.made][count]
        assert module.found is expected or module.found == expected


def test_a_wrapper_that_a_module_keeps_is_traced_through():
    class Keeps(Manual):
        def on_fit_start(self):
            self.opt = self.optimizers()

        @stepgraph.compile
        def training_step(self, batch):
            self.opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            self.opt.step()

    module, trainer = made(Keeps), quiet(max_epochs=1, compile=True)
    trainer.fit(module, regression_batches())
    expected = made(Regression)
    quiet(max_epochs=1).fit(expected, regression_batches())

    assert_same_weights(expected, module)
    assert module.training_step.explain().captured
    assert trainer.optimizer_steps == [5]
