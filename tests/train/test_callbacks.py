"""Averages of weights and early stops."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stepgraph import EMA, Callback, EarlyStopping
from train.worlds import Regression, assert_same_weights, made, quiet, regression_batches


class Watches(Callback):
    """Keeps the weights that validations see, and those they leave."""

    def __init__(self):
        self.seen, self.left = [], []

    def on_validation_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(module.model[0].weight.detach().clone())

    def on_train_epoch_end(self, trainer, module):
        self.left.append(module.model[0].weight.detach().clone())


def weights_by_step(steps, epochs=2):
    """The weights after each update of the same training without an average."""
    found = []

    class Keeps(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            found.append({n: p.detach().clone() for n, p in module.named_parameters()})

    quiet(max_epochs=epochs, callbacks=[Keeps()]).fit(made(Regression), regression_batches(steps))
    return found


@pytest.mark.parametrize(
    ("options", "updated_at"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"update_every_n_steps": 3}, [3, 6]),
        ({"start_step": 5}, [5, 6, 7, 8]),
        ({"start_epoch": 1}, [5, 6, 7, 8]),
        ({"start_epoch": 1, "update_every_n_steps": 2}, [6, 8]),
    ],
)
def test_the_average_is_updated_when_it_was_asked_to_be(options, updated_at):
    ema = EMA(0.8, **options)
    module = made(Regression)
    quiet(max_epochs=2, callbacks=[ema]).fit(module, regression_batches(4))

    steps = weights_by_step(4)
    reference = made(Regression)
    averaged = AveragedModel(reference, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for at in updated_at:
        reference.load_state_dict(steps[at - 1])
        averaged.update_parameters(reference)
    assert ema.n_averaged == len(updated_at)
    assert_same_weights(averaged.module, module)


def test_a_validation_sees_the_average_and_the_training_does_not():
    ema, watch = EMA(0.8, start_epoch=1), Watches()

    quiet(max_epochs=2, callbacks=[ema, watch]).fit(
        made(Regression), regression_batches(4), regression_batches(1)
    )

    steps = weights_by_step(4)
    before_any_update, average = watch.seen
    assert torch.equal(before_any_update, steps[3]["model.0.weight"])
    assert torch.equal(average, ema.averages["model.0.weight"])
    assert not torch.equal(average, steps[7]["model.0.weight"])
    assert torch.equal(watch.left[1], steps[7]["model.0.weight"])


def test_an_exception_in_a_validation_gives_the_weights_back():
    class Fails(Regression):
        def validation_step(self, batch, batch_idx):
            raise ZeroDivisionError

    module = made(Fails)
    with pytest.raises(ZeroDivisionError):
        quiet(max_epochs=2, callbacks=[EMA(0.8)]).fit(
            module, regression_batches(4), regression_batches(1)
        )

    assert torch.equal(module.model[0].weight, weights_by_step(4)[3]["model.0.weight"])


def test_the_average_goes_on_while_gradients_accumulate():
    ema = EMA(0.8)

    quiet(max_epochs=1, accumulate_grad_batches=2, callbacks=[ema]).fit(
        made(Regression), regression_batches(6)
    )

    assert ema.n_averaged == 3


@pytest.mark.parametrize(
    ("scores", "options", "epochs"),
    [
        ([3.0, 2.0, 2.0, 2.0, 1.0], {"patience": 2}, 4),
        ([3.0, 2.0, 1.0, 0.5, 0.4], {"patience": 1}, 5),
        ([1.0, 2.0, 3.0, 3.0, 3.0], {"patience": 1, "mode": "max"}, 4),
        ([3.0, 2.9, 2.8, 1.0, 0.0], {"patience": 2, "min_delta": 0.5}, 3),
        ([1.0, float("nan"), 0.0, 0.0, 0.0], {}, 2),
    ],
)
def test_a_training_stops_when_nothing_improves(scores, options, epochs):
    class Scores(Regression):
        def validation_step(self, batch, batch_idx):
            self.log("score", scores[self.current_epoch])

    stopping = EarlyStopping("score", **options)
    trainer = quiet(max_epochs=5, callbacks=[stopping])
    trainer.fit(made(Scores), regression_batches(2), regression_batches(1))

    assert trainer.current_epoch == epochs
    assert stopping.stopped_epoch == (epochs - 1 if epochs < 5 else None)


def test_without_a_validation_epochs_are_checked():
    class Scores(Regression):
        def training_step(self, batch, batch_idx):
            self.log("score", 1.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    trainer = quiet(max_epochs=9, callbacks=[EarlyStopping("score", patience=2)])
    trainer.fit(made(Scores), regression_batches(2))

    assert trainer.current_epoch == 3


def test_validation_leaves_every_mode_as_it_was():
    class Frozen(Regression):
        def on_fit_start(self):
            self.model[0].eval()

    module = made(Frozen)
    quiet(max_epochs=2, val_check_interval=1).fit(
        module, regression_batches(2), regression_batches(1)
    )

    assert module.training
    assert not module.model[0].training
    assert module.model[2].training
