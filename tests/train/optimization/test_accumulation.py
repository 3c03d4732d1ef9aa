"""Accumulation windows: their ends, their normalisation, what is called how often."""

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from stepgraph import GradientAccumulationScheduler
from support.harness import draw
from train.worlds import EPOCHS, Regression, assert_same_weights, made, quiet, regression_batches


def loop_with_windows(module, batches, n, epochs=EPOCHS):
    """Windows of `n` batches, a short last one divided by its own length."""
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        every = list(batches)
        for start in range(0, len(every), n):
            window = every[start : start + n]
            opt.zero_grad()
            for batch in window:
                (module.compute_loss(batch) / len(window)).backward()
            opt.step()


class Stream:
    """Batches without a length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Counting(Regression):
    """Counts what the trainer calls."""

    def __init__(self, interval="step", frequency=1):
        super().__init__()
        self.calls = dict.fromkeys(("backward", "zero_grad", "step", "schedule", "training"), 0)
        self.schedule = {"interval": interval, "frequency": frequency}
        self.scheduled_at = []

    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return opt, {"scheduler": ExponentialLR(opt, 0.9), **self.schedule}

    def training_step(self, batch, batch_idx):
        self.calls["training"] += 1
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        self.calls["backward"] += 1

    def on_before_zero_grad(self, optimizer):
        self.calls["zero_grad"] += 1

    def on_before_optimizer_step(self, optimizer):
        self.calls["step"] += 1

    def lr_scheduler_step(self, scheduler, metric):
        self.calls["schedule"] += 1
        self.scheduled_at.append(self.trainer.progress.batches)
        super().lr_scheduler_step(scheduler, metric)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stream", [False, True])
def test_a_short_window_is_divided_by_its_own_length(n, stream):
    batches = regression_batches()
    module, expected = made(Regression), made(Regression)

    trainer = quiet(accumulate_grad_batches=n)
    trainer.fit(module, Stream(batches) if stream else batches)
    loop_with_windows(expected, batches, n)

    assert_same_weights(expected, module)
    assert trainer.global_step == EPOCHS * -(-len(batches) // n)


@pytest.mark.parametrize("n", [2, 3])
def test_compiled_windows_are_the_same(n):
    batches = regression_batches()
    module, expected = made(Regression), made(Regression)

    trainer = quiet(accumulate_grad_batches=n, compile=True)
    trainer.fit(module, batches)
    loop_with_windows(expected, batches, n)

    assert_same_weights(expected, module)
    assert trainer.steps[0].explain().captured
    assert trainer.steps[0].explain().fallback_reason is None


@pytest.mark.parametrize(("batches", "n", "windows"), [(6, 3, 2), (7, 3, 3), (2, 3, 1), (4, 1, 4)])
def test_everything_is_called_as_often_as_windows_say(batches, n, windows):
    module = made(Counting)

    quiet(max_epochs=2, accumulate_grad_batches=n).fit(module, regression_batches(batches))

    assert module.calls == {
        "training": 2 * batches,
        "backward": 2 * batches,
        "zero_grad": 2 * windows,
        "step": 2 * windows,
        "schedule": 2 * windows,
    }


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_a_schedule_by_steps_counts_steps_of_its_optimizer(frequency):
    module = made(Counting, frequency=frequency)

    quiet(max_epochs=2, accumulate_grad_batches=4).fit(module, regression_batches(8))

    assert module.calls["schedule"] == 4 // frequency


def test_a_schedule_by_epochs_counts_epochs():
    module = made(Counting, interval="epoch", frequency=2)

    quiet(max_epochs=5).fit(module, regression_batches(3))

    assert module.calls["schedule"] == 2


def test_accumulation_by_epoch():
    batches = regression_batches(6)
    module, expected = made(Regression), made(Regression)

    trainer = quiet(accumulate_grad_batches={1: 2, 2: 3}, max_epochs=3)
    trainer.fit(module, batches)

    opt = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for n in (1, 2, 3):
        for start in range(0, 6, n):
            opt.zero_grad()
            for batch in list(batches)[start : start + n]:
                loss = expected.compute_loss(batch)
                (loss if n == 1 else loss / n).backward()
            opt.step()
    assert_same_weights(expected, module)
    assert trainer.global_step == 6 + 3 + 2


def test_the_scheduler_callback_means_the_same_as_the_argument():
    first, second = made(Regression), made(Regression)
    schedule = {0: 2, 1: 4}

    quiet(accumulate_grad_batches=schedule).fit(first, regression_batches())
    quiet(callbacks=[GradientAccumulationScheduler(schedule)]).fit(second, regression_batches())

    assert_same_weights(first, second)


def test_accumulated_gradients_survive_a_validation():
    batches = regression_batches(6)
    module, expected = made(Regression), made(Regression)

    quiet(accumulate_grad_batches=3, val_check_interval=2).fit(module, batches, batches)
    quiet(accumulate_grad_batches=3).fit(expected, batches)

    assert_same_weights(expected, module)


class ManualWindow(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        self.manual_backward(self.compute_loss(batch) / 3)
        if (batch_idx + 1) % 3 == 0:
            opt.step()
            opt.zero_grad()


def test_accumulated_gradients_survive_a_validation_in_manual_mode():
    batches = regression_batches(6)
    module, expected = made(ManualWindow), made(Regression)

    quiet(val_check_interval=2).fit(module, batches, batches)
    loop_with_windows(expected, batches, 3)

    assert_same_weights(expected, module)


class SkipsSome(Counting):
    """Has no loss for some batches."""

    def __init__(self, skipped):
        super().__init__()
        self.skipped = skipped

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in self.skipped else loss


def test_a_window_without_a_loss_updates_nothing():
    module, trainer = made(SkipsSome, {2, 3}), quiet(max_epochs=1, accumulate_grad_batches=2)

    trainer.fit(module, regression_batches(6))

    assert module.calls["backward"] == 4
    assert module.calls["step"] == module.calls["schedule"] == module.calls["zero_grad"] == 2
    assert trainer.global_step == 2
    assert trainer.optimizer_steps == [2]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_window_with_some_losses_updates_with_those(compiled):
    batches = list(regression_batches(4))
    module, expected = made(SkipsSome, {0, 3}), made(Regression)

    trainer = quiet(max_epochs=1, accumulate_grad_batches=2, compile=compiled)
    trainer.fit(module, batches)

    opt = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for i, rate in ((1, 0.1), (2, 0.1 * 0.9)):
        opt.param_groups[0]["lr"] = rate
        opt.zero_grad()
        (expected.compute_loss(batches[i]) / 2).backward()
        opt.step()
    assert_same_weights(expected, module)


class Stops(Regression):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


def test_the_rest_of_an_epoch_can_be_skipped():
    trainer = quiet(max_epochs=2)

    trainer.fit(made(Stops), regression_batches(6))

    assert trainer.global_step == 4
    assert trainer.current_epoch == 2


def test_the_number_of_updates_is_known_in_configure_optimizers():
    seen = []

    class Estimates(Regression):
        def configure_optimizers(self):
            seen.append(self.trainer.estimated_stepping_batches)
            opt = super().configure_optimizers()
            return opt, LambdaLR(opt, lambda step: 1.0)

    trainer = quiet(max_epochs=3, accumulate_grad_batches=2)
    trainer.fit(made(Estimates), regression_batches(5))

    assert seen == [9]
    assert trainer.global_step == 9


class Frequencies(Regression):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx, optimizer_idx):
        self.seen.append(optimizer_idx)
        return self.compute_loss(batch)

    def configure_optimizers(self):
        first = torch.optim.SGD(self.model[0].parameters(), lr=0.1)
        second = torch.optim.SGD(self.model[2].parameters(), lr=0.1)
        return [
            {"optimizer": first, "frequency": 2, "lr_scheduler": ExponentialLR(first, 0.5)},
            {"optimizer": second, "frequency": 1},
        ]


def test_optimizers_take_turns_by_their_frequencies():
    module, trainer = made(Frequencies), quiet(max_epochs=1)

    trainer.fit(module, regression_batches(7))

    assert module.seen == [0, 0, 1, 0, 0, 1, 0]
    assert trainer.optimizer_steps == [5, 2]
    assert trainer.global_step == 7


def test_max_steps_ends_the_training_in_the_middle_of_an_epoch():
    module, trainer = made(Regression), quiet(max_epochs=None, max_steps=7)

    trainer.fit(module, regression_batches(5))

    assert trainer.global_step == 7
    assert trainer.progress.batch == 2


class TwoPerBatch(ManualWindow):
    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.model[::2]]

    def training_step(self, batch, batch_idx):
        for opt in self.optimizers():
            opt.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        for opt in self.optimizers():
            opt.step()


@pytest.mark.parametrize("max_steps", [3, 4])
def test_global_step_counts_batches_whatever_the_number_of_optimizers(max_steps):
    trainer = quiet(max_steps=max_steps)

    trainer.fit(made(TwoPerBatch), regression_batches(5))

    assert trainer.global_step == max_steps
    assert trainer.optimizer_steps == [max_steps, max_steps]


def test_a_step_in_a_hook_counts():
    class StepsLater(ManualWindow):
        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self.compute_loss(batch))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.optimizers().step()

    trainer = quiet(max_epochs=1)
    trainer.fit(made(StepsLater), regression_batches(5))

    assert trainer.global_step == 5


def test_is_last_batch_is_known_for_a_stream():
    seen = []

    class Watches(Regression):
        def training_step(self, batch, batch_idx):
            seen.append(self.trainer.is_last_batch)
            return super().training_step(batch, batch_idx)

    quiet(max_epochs=2).fit(made(Watches), Stream(regression_batches(3)))

    assert seen == [False, False, True] * 2


def test_a_loader_is_read_to_its_end_as_by_a_for_loop():
    """With a generator of its own, a sampler draws from it once more when it is asked for more."""
    data = TensorDataset(draw(20, 4), draw(20, 2))
    loaders = [
        DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    orders = [[], []]

    class Watches(Regression):
        def training_step(self, batch, batch_idx):
            orders[0].append(batch[0])
            return super().training_step(batch, batch_idx)

    quiet(max_epochs=2).fit(made(Watches), loaders[0])
    for _ in range(2):
        orders[1] += [x for x, _ in loaders[1]]

    assert all(torch.equal(own, plain) for own, plain in zip(*orders, strict=True))


def test_a_loader_with_a_length_is_not_read_ahead():
    order = []

    class Watched:
        def __len__(self):
            return 3

        def __iter__(self):
            for i in range(3):
                order.append(f"fetch {i}")
                yield draw(6, 4, seed=i), draw(6, 2, seed=i)

    class Watches(Regression):
        def training_step(self, batch, batch_idx):
            order.append(f"train {batch_idx}")
            return super().training_step(batch, batch_idx)

    quiet(max_epochs=1).fit(made(Watches), Watched())

    assert order == ["fetch 0", "train 0", "fetch 1", "train 1", "fetch 2", "train 2"]
