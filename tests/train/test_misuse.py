"""Every misuse is an error that says what, at, found, why, try, and leaves nothing half changed."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from stepgraph import (
    EMA,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    Module,
)
from stepgraph.errors import ConfigurationError
from stepgraph.train.optimization.configuration import configuration
from train.worlds import Manual, Regression, made, quiet, regression_batches


def parameters():
    return [torch.nn.Parameter(torch.zeros(2))]


def optimizer():
    return SGD(parameters(), lr=0.1)


def assert_says_what_to_do(error):
    assert isinstance(error, ConfigurationError)
    assert error.what
    assert error.hint


@pytest.mark.parametrize(
    ("form", "optimizers", "schedulers"),
    [
        (lambda o, s: o, 1, 0),
        (lambda o, s: [o], 1, 0),
        (lambda o, s: (o, SGD(parameters(), lr=0.1)), 2, 0),
        (lambda o, s: (o, s), 1, 1),
        (lambda o, s: (o, {"scheduler": s, "interval": "step"}), 1, 1),
        (lambda o, s: ([o], [s]), 1, 1),
        (lambda o, s: ([o], s), 1, 1),
        (lambda o, s: ((o,), (s,)), 1, 1),
        (lambda o, s: ([o], {"scheduler": s, "monitor": "loss"}), 1, 1),
        (lambda o, s: ([o], None), 1, 0),
        (lambda o, s: ([o], []), 1, 0),
        (lambda o, s: {"optimizer": o}, 1, 0),
        (lambda o, s: {"optimizer": o, "lr_scheduler": s}, 1, 1),
        (lambda o, s: {"optimizer": o, "lr_scheduler": None}, 1, 0),
        (lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s}, "monitor": "x"}, 1, 1),
        (lambda o, s: [{"optimizer": o, "lr_scheduler": s}, {"optimizer": optimizer()}], 2, 1),
    ],
)
def test_every_form_of_optimizers_is_accepted(form, optimizers, schedulers):
    opt = optimizer()

    found = configuration(form(opt, StepLR(opt, 1)), automatic=True)

    assert len(found.optimizers) == optimizers
    assert len(found.schedulers) == schedulers
    assert found.optimizers[0] is opt


@pytest.mark.parametrize(
    "form",
    [
        lambda o, s: 3,
        lambda o, s: "adam",
        lambda o, s: [],
        lambda o, s: (o, o),
        lambda o, s: (s, o),
        lambda o, s: [o, s, s],
        lambda o, s: [{"optimizer": o}, optimizer()],
        lambda o, s: {"optimiser": o},
        lambda o, s: {"lr_scheduler": s},
        lambda o, s: {"optimizer": o, "schedule": s},
        lambda o, s: ([o], [{"schedule": s}]),
        lambda o, s: ([o], [{"scheduler": s, "intervall": "step"}]),
        lambda o, s: ([o], [{"scheduler": s, "interval": "batch"}]),
        lambda o, s: ([o], [{"scheduler": s, "frequency": 0}]),
        lambda o, s: ([o], [ReduceLROnPlateau(o)]),
        lambda o, s: ([o], [object()]),
        lambda o, s: ([optimizer()], [s]),
        lambda o, s: [{"optimizer": o, "frequency": 1}, {"optimizer": optimizer()}],
        lambda o, s: [{"optimizer": o, "frequency": 0}],
    ],
)
def test_every_other_form_is_an_error(form):
    opt = optimizer()

    with pytest.raises(ConfigurationError) as caught:
        configuration(form(opt, StepLR(opt, 1)), automatic=True)

    assert_says_what_to_do(caught.value)


def test_no_optimizer_is_a_warning_and_a_fit_without_updates():
    class Nothing(Regression):
        def configure_optimizers(self):
            return None

    trainer = quiet(max_epochs=1)
    with pytest.warns(UserWarning, match="without an optimizer"):
        trainer.fit(made(Nothing), regression_batches())

    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches"),
        ({"accumulate_grad_batches": {}}, "accumulate_grad_batches"),
        ({"accumulate_grad_batches": {-1: 2}}, "accumulate_grad_batches"),
        ({"accumulate_grad_batches": 1.5}, "accumulate_grad_batches"),
        ({"gradient_clip_val": "1"}, "gradient_clip_val"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val"),
        ({"gradient_clip_algorithm": "max"}, "gradient_clip_algorithm"),
        ({"precision": "fp8"}, "precision"),
        ({"max_epochs": -2}, "max_epochs"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"limit_train_batches": 1.5}, "limit_train_batches"),
        ({"limit_val_batches": -1}, "limit_val_batches"),
        ({"val_check_interval": 0}, "val_check_interval"),
        ({"log_every_n_steps": 0}, "log_every_n_steps"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch"),
        ({"accelerator": "tpu"}, "accelerator"),
        ({"strategy": "fsdp"}, "strategy"),
        ({"devices": "two"}, "devices"),
        ({"devices": 2}, "devices"),
        ({"logger": 3}, "logger"),
        ({"callbacks": [3]}, "callbacks"),
    ],
)
def test_an_argument_without_a_meaning_is_an_error(arguments, name):
    with pytest.raises(ConfigurationError) as caught:
        quiet(**arguments)

    assert_says_what_to_do(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientAccumulationScheduler({}),
        lambda: GradientAccumulationScheduler({0: 0}),
        lambda: GradientAccumulationScheduler({"0": 2}),
        lambda: EarlyStopping("loss", mode="best"),
        lambda: ModelCheckpoint(mode="best"),
        lambda: ModelCheckpoint(save_top_k=-2),
        lambda: EMA(decay=2.0),
        lambda: EMA(update_every_n_steps=0),
        lambda: quiet(accumulate_grad_batches=2, callbacks=[GradientAccumulationScheduler({0: 2})]),
        lambda: quiet(callbacks=[ModelCheckpoint()]),
        lambda: quiet(callbacks=[EMA(), EMA()]),
    ],
)
def test_callbacks_refuse_what_has_no_meaning(make):
    with pytest.raises(ConfigurationError) as caught:
        make()

    assert_says_what_to_do(caught.value)


class MissesIndex(Regression):
    def configure_optimizers(self):
        return [SGD(part.parameters(), lr=0.1) for part in self.model[::2]]


class IndexInManual(Manual):
    def training_step(self, batch, batch_idx, optimizer_idx):
        pass


class BackwardInAutomatic(Regression):
    def training_step(self, batch, batch_idx):
        self.manual_backward(self.compute_loss(batch))


class NoLoss(Regression):
    def training_step(self, batch, batch_idx):
        return {"los": self.compute_loss(batch)}


class NumberAsLoss(Regression):
    def training_step(self, batch, batch_idx):
        return 3.0


class TextFromManual(Manual):
    def training_step(self, batch, batch_idx):
        return "done"


class ChangesItsMind(Regression):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.automatic_optimization = False


class NoStep(Regression):
    training_step = Module.training_step


class Plateau(Regression):
    strict = True

    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return opt, {"scheduler": ReduceLROnPlateau(opt), "monitor": "x", "strict": self.strict}


class Searches(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class TakesTurns(Regression):
    def configure_optimizers(self):
        return [{"optimizer": SGD(self.parameters(), lr=0.1), "frequency": 2}]


@pytest.mark.parametrize(
    ("world", "options", "words"),
    [
        (MissesIndex, {}, "missing optimizer_idx"),
        (IndexInManual, {}, "has no optimizer_idx"),
        (BackwardInAutomatic, {}, "manual_backward in automatic"),
        (NoLoss, {}, "returns a loss"),
        (NumberAsLoss, {}, "returns a loss"),
        (TextFromManual, {}, "a tensor, a dict or None"),
        (ChangesItsMind, {}, "changed in the middle"),
        (NoStep, {}, "no training_step"),
        (Plateau, {}, "was not logged"),
        (Manual, {"gradient_clip_val": 1.0}, "gradient_clip_val"),
        (Manual, {"accumulate_grad_batches": 2}, "accumulate_grad_batches"),
        (Searches, {"accumulate_grad_batches": 2}, "LBFGS"),
        (TakesTurns, {"accumulate_grad_batches": 2}, "exclude each other"),
        (Regression, {"callbacks": [EarlyStopping("x")]}, "was not logged"),
    ],
)
def test_a_training_that_contradicts_itself_is_an_error(world, options, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        quiet(**options).fit(made(world), regression_batches())

    assert_says_what_to_do(caught.value)


def test_what_is_refused_before_a_fit_has_changed_nothing():
    module = made(Manual)
    trainer = quiet(max_epochs=1)
    trainer.fit(made(Regression), regression_batches())
    before = trainer.progress.state_dict()

    with pytest.raises(ConfigurationError):
        quiet(gradient_clip_val=1.0, precision="64-true", seed=3).fit(module, [1])
    with pytest.raises(ConfigurationError):
        trainer.fit(torch.nn.Linear(1, 1), [1])
    with pytest.raises(ConfigurationError):
        trainer.fit(made(Regression), 3)

    assert module._trainer is None
    assert module.model[0].weight.dtype is torch.float32
    assert trainer.progress.state_dict() == before


def test_a_missing_metric_may_be_tolerated():
    with pytest.warns(RuntimeWarning, match="was not advanced"):
        quiet(max_epochs=1).fit(
            made(type("Lax", (Plateau,), {"strict": False})), regression_batches()
        )


def test_a_module_without_a_trainer_says_so():
    module = made(Regression)

    for use in (
        module.optimizers,
        module.lr_schedulers,
        lambda: module.trainer,
        lambda: module.global_step,
        lambda: module.clip_gradients(None, 1.0),
        lambda: module.toggle_optimizer(None),
    ):
        with pytest.raises(ConfigurationError, match="not attached"):
            use()


def test_a_loader_that_lies_about_its_length_is_found_out():
    class Lies(list):
        def __len__(self):
            return 4

    with pytest.raises(ConfigurationError, match="fewer batches"):
        quiet().fit(made(Regression), Lies(regression_batches(3)))
    with pytest.raises(ConfigurationError, match="more batches"):
        quiet().fit(made(Regression), Lies(regression_batches(5)))
    quiet(limit_train_batches=2).fit(made(Regression), Lies(regression_batches(5)))


def test_intervals_that_never_come_are_refused():
    for options in (
        {"val_check_interval": 9},
        {"val_check_interval": 0.01},
        {"check_val_every_n_epoch": None},
    ):
        with pytest.raises(ConfigurationError, match="val_check_interval"):
            quiet(**options).fit(made(Regression), regression_batches(), regression_batches())


def test_shares_of_a_stream_are_refused():
    for options in ({"limit_train_batches": 0.5}, {"val_check_interval": 0.5}):
        with pytest.raises(ConfigurationError, match="without a length"):
            quiet(**options).fit(made(Regression), iter(list(regression_batches())))


def test_hyper_parameters_are_remembered_by_name():
    class Tuned(Regression):
        def __init__(self, rate, *, depth=3, **others):
            super().__init__()
            self.save_hyperparameters(ignore="depth")

    module = Tuned(0.5, width=7)

    assert module.hparams == {"rate": 0.5, "width": 7}
    assert module.hparams.rate == 0.5
    with pytest.raises(AttributeError, match="depth"):
        _ = module.hparams.depth


def test_callbacks_can_stop_the_training():
    class StopsAt(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step >= 7

    trainer = quiet(max_epochs=9, callbacks=[StopsAt()])
    trainer.fit(made(Regression), regression_batches(5))
    patient = quiet(max_epochs=9, min_epochs=3, callbacks=[StopsAt()])
    patient.fit(made(Regression), regression_batches(5))

    assert trainer.global_step == 7
    assert patient.global_step == 15
