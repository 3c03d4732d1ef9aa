"""What is logged, where it arrives, how it is reduced, and when the device is read."""

import csv
import io
import json
import sys

import pytest
import torch
from rich.console import Console

import stepgraph
from stepgraph import (
    EMA,
    Callback,
    CSVLogger,
    LearningRateMonitor,
    ProgressBar,
    TensorBoardLogger,
)
from stepgraph.errors import ConfigurationError
from stepgraph.train.logging.loggers import Logger
from support.harness import draw
from train.worlds import GAN, Regression, made, quiet, regression_batches, tolerated


class Keeps(Logger):
    """A logger that keeps what it gets."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


class Logs(Regression):
    """Logs the number of the batch, in the way the test asks for."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def training_step(self, batch, batch_idx):
        self.log("value", float(batch_idx), **self.options)
        return super().training_step(batch, batch_idx)


def run(module, batches=None, **options):
    logger = Keeps()
    trainer = quiet(max_epochs=1, **{"logger": logger, "log_every_n_steps": 1, **options})
    trainer.fit(made(lambda: module), batches or regression_batches(4))
    return trainer, logger.rows


def test_by_default_a_training_step_logs_every_value():
    _, rows = run(Logs())

    assert rows == [(i + 1, {"value": float(i)}) for i in range(4)]


def test_values_of_an_epoch_are_averaged():
    _, rows = run(Logs(on_step=False, on_epoch=True))

    assert rows == [(4, {"value": 1.5})]


def test_both_get_two_names():
    trainer, rows = run(Logs(on_step=True, on_epoch=True))

    assert rows[0] == (1, {"value_step": 0.0})
    assert rows[-1] == (4, {"value_epoch": 1.5})
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == {
        "value_step": 3.0,
        "value_epoch": 1.5,
        "value": 1.5,
    }


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("mean", 1.5), ("sum", 6.0), ("min", 0.0), ("max", 3.0), (torch.median, 1.0)],
)
def test_reductions(reduction, expected):
    trainer, _ = run(Logs(on_step=False, on_epoch=True, reduce_fx=reduction))

    assert float(trainer.callback_metrics["value"]) == expected


def test_what_is_logged_twice_in_a_step_is_averaged_whole():
    class Twice(Regression):
        def training_step(self, batch, batch_idx):
            self.log("value", 1.0, on_epoch=True)
            self.log("value", 2.0 + batch_idx, on_epoch=True)
            return self.compute_loss(batch)

    trainer, rows = run(made(Twice), regression_batches(2))

    assert rows == [(1, {"value_step": 2.0}), (2, {"value_step": 3.0}), (2, {"value_epoch": 1.75})]
    assert trainer.callback_metrics["value_epoch"] == 1.75


def test_a_mean_is_weighted_by_batch_size():
    batches = [(draw(n, 4), draw(n, 2)) for n in (1, 3)]

    inferred, _ = run(Logs(on_step=False, on_epoch=True), batches)
    given, _ = run(Logs(on_step=False, on_epoch=True, batch_size=5), batches)

    assert float(inferred.callback_metrics["value"]) == 0.75
    assert float(given.callback_metrics["value"]) == 0.5


def test_only_what_is_asked_for_is_shown_and_written():
    trainer, rows = run(Logs(prog_bar=True, logger=False))

    assert rows == []
    assert trainer.progress_bar_metrics == {"value": 3.0}
    assert "value" not in trainer.logged_metrics
    assert "value" in trainer.callback_metrics


class LogsInHooks(Regression):
    def on_train_epoch_end(self):
        self.log("at_end", 7.0)

    def validation_step(self, batch, batch_idx):
        self.log("val", float(batch_idx))

    def on_validation_epoch_end(self):
        self.log("val_end", 9.0)


def test_hooks_and_validations_log_by_epoch():
    logger = Keeps()
    trainer = quiet(max_epochs=1, logger=logger)
    trainer.fit(made(LogsInHooks), regression_batches(2), regression_batches(3))

    assert logger.rows == [(2, {"val": 1.0, "val_end": 9.0}), (2, {"at_end": 7.0})]


def test_validate_returns_what_was_logged():
    module = made(LogsInHooks)

    assert quiet().validate(module, regression_batches(3)) == [{"val": 1.0, "val_end": 9.0}]
    assert module.training


def test_several_validation_loaders_are_told_apart():
    class Several(Regression):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("val", float(dataloader_idx))

    loaders = [torch.utils.data.DataLoader([torch.zeros(2)] * 3) for _ in range(2)]

    (found,) = quiet().validate(made(Several), loaders)

    assert found == {"val/dataloader_idx_0": 0.0, "val/dataloader_idx_1": 1.0}


READS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__")


@pytest.mark.parametrize(("every", "compiled"), [(3, False), (50, False), (3, True)])
def test_the_device_is_read_only_every_n_steps(monkeypatch, every, compiled):
    """Whoever reads: loggers, the progress bar, callbacks, sums over an epoch."""
    reads = []

    def counting(name, plain):
        def read(self, *args, **kwargs):
            reads.append((trainer.progress.batches, name))
            return plain(self, *args, **kwargs)

        return read

    class LogsTensors(Regression):
        def training_step(self, batch, batch_idx):
            loss = self.compute_loss(batch)
            self.log("loss", loss, on_epoch=True, prog_bar=True)
            self.log_dict({"max": loss, "number": 2.0}, reduce_fx="max", on_step=False)
            return loss

    bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True))
    options = {"logger": Keeps(), "log_every_n_steps": every, "compile": compiled}
    trainer = quiet(max_epochs=1, callbacks=[bar, EMA(), LearningRateMonitor()], **options)
    module = made(LogsTensors)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))

    trainer.fit(module, regression_batches(12))

    between = [(place, name) for place, name in reads if place % every and place < 12]
    captures = 1 if compiled else None  # the second batch is traced
    assert [read for read in between if read[0] != captures] == []
    assert any(place == 12 for place, _ in reads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_waited_for_only_where_a_row_is_written():
    """torch itself reports every synchronisation; there is none between two rows."""

    class Checks(Logs):
        def training_step(self, batch, batch_idx):
            loss = self.compute_loss(batch)
            self.log("loss", loss, on_epoch=True)
            return loss

        def on_train_batch_start(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("error" if batch_idx < 9 else "default")

    batches = [tuple(x.cuda() for x in batch) for batch in regression_batches(12)]
    options = {"accelerator": "cuda", "log_every_n_steps": 10, "logger": Keeps()}
    try:
        quiet(max_epochs=1, **options).fit(made(Checks), batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_step_logs_the_same():
    class Compiled(GAN):
        def __init__(self, decorate):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            g_opt, _ = self.optimizers()
            with g_opt.toggle_model():
                g_opt.zero_grad()
                loss = self.D(self.sample_G(6)).mean()
                self.manual_backward(loss)
                g_opt.step()
            self.log("both", loss, on_epoch=True, prog_bar=True, batch_size=loss.numel() + 1)
            self.log_dict({"twice": loss * 2, "number": 2.5}, on_step=False, on_epoch=True)

    class Decorated(Compiled):
        training_step = stepgraph.compile(Compiled.training_step)

    found = []
    for world in (Compiled, Decorated):
        logger = Keeps()
        trainer = quiet(max_epochs=2, logger=logger, log_every_n_steps=2, compile=True)
        module = made(world, None)
        trainer.fit(module, regression_batches())
        found.append(logger.rows)

    assert found[0] == found[1]
    assert module.training_step.explain().captured
    assert module.training_step.explain().fallback_reason is None


def test_accumulating_batches_wait_with_their_row():
    _, rows = run(Logs(), accumulate_grad_batches=2)

    assert rows == [(1, {"value": 1.0}), (2, {"value": 3.0})]


@pytest.mark.parametrize(
    ("value", "words"),
    [(torch.zeros(2), "shape"), ("text", "str"), ({"a": 1.0}, "dict")],
)
def test_only_one_number_can_be_logged(value, words):
    class Wrong(Regression):
        def training_step(self, batch, batch_idx):
            self.log("value", value)

    with pytest.raises(ConfigurationError, match=words):
        quiet().fit(made(Wrong), regression_batches())


def test_an_unknown_reduction_is_an_error():
    with pytest.raises(ConfigurationError, match="unknown reduction"):
        run(Logs(reduce_fx="average"))


@pytest.mark.parametrize("where", ["configure_optimizers", "lr_scheduler_step", "on_fit_start"])
def test_nothing_can_be_logged_where_there_is_no_batch(where):
    class Wrong(Regression):
        def configure_optimizers(self):
            if where == "configure_optimizers":
                self.log("value", 1.0)
            opt = super().configure_optimizers()
            return opt, torch.optim.lr_scheduler.StepLR(opt, 1)

        def lr_scheduler_step(self, scheduler, metric):
            if where == "lr_scheduler_step":
                self.log("value", 1.0)
            scheduler.step()

        def on_fit_start(self):
            if where == "on_fit_start":
                self.log("value", 1.0)

    with pytest.raises(ConfigurationError, match="no step or epoch"):
        quiet().fit(made(Wrong), regression_batches())


def test_without_a_trainer_logging_warns():
    with pytest.warns(UserWarning, match="without a Trainer"):
        made(Regression).log("value", 1.0)


def test_the_csv_logger_adds_columns_as_metrics_appear(tmp_path):
    logger = CSVLogger(tmp_path, "runs")
    module = made(LogsInHooks)
    module.hparams["learning_rate"] = 0.1

    quiet(max_epochs=2, logger=logger, log_every_n_steps=1).fit(
        module, regression_batches(2), regression_batches(2)
    )

    with logger.path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "2", "4", "4"]
    assert [row["val"] for row in rows] == ["0.5", "", "0.5", ""]
    assert [row["at_end"] for row in rows] == ["", "7.0", "", "7.0"]
    assert logger.path.parent.name == "version_0"
    assert json.loads((logger.log_dir / "hparams.json").read_text()) == {"learning_rate": 0.1}
    assert CSVLogger(tmp_path, "runs").version == 1


def test_the_default_logger_is_a_csv_file(tmp_path):
    trainer = quiet(max_epochs=1, logger=True, default_root_dir=tmp_path, log_every_n_steps=1)

    trainer.fit(made(Logs), regression_batches(2))

    assert (tmp_path / "logs" / "version_0" / "metrics.csv").exists()


def test_tensorboard_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    with pytest.raises(ConfigurationError, match="tensorboard"):
        TensorBoardLogger(tmp_path)


def test_tensorboard_gets_scalars(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, *args):
            written.append(args)

        def add_text(self, *args):
            written.append(args)

        def flush(self):
            written.append("flush")

        def close(self):
            written.append("close")

    module = type("Module", (), {"SummaryWriter": Writer})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    quiet(max_epochs=1, logger=TensorBoardLogger(tmp_path), log_every_n_steps=2).fit(
        made(Logs), regression_batches(2)
    )

    assert written == [("hparams", "{}"), ("value", 1.0, 2), "flush", "close"]


def test_tensorboard_reads_what_was_written(tmp_path):
    """With the real writer, and TensorBoard's own reader."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(name)
    logger = TensorBoardLogger(tmp_path)
    with tolerated(DeprecationWarning):
        quiet(max_epochs=1, logger=logger, log_every_n_steps=2).fit(
            made(Logs), regression_batches(4)
        )

    events = reader.EventAccumulator(str(logger.log_dir)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("value")] == [(2, 1.0), (4, 3.0)]


def test_learning_rates_are_logged_by_name():
    class Two(Regression):
        def configure_optimizers(self):
            first = torch.optim.SGD(self.model[0].parameters(), lr=0.5)
            weight, bias = self.model[2].parameters()
            groups = [{"params": [weight], "lr": 1.0}, {"params": [bias], "lr": 2.0}]
            second = torch.optim.SGD(groups, lr=0.25)
            schedule = torch.optim.lr_scheduler.StepLR(first, 1, 0.5)
            return [first, second], [schedule]

        def training_step(self, batch, batch_idx, optimizer_idx):
            return self.compute_loss(batch)

    logger = Keeps()
    quiet(max_epochs=2, logger=logger, callbacks=[LearningRateMonitor("epoch")]).fit(
        made(Two), regression_batches(2)
    )

    assert logger.rows == [
        (0, {"lr-SGD": 0.5, "lr-SGD-1/pg1": 1.0, "lr-SGD-1/pg2": 2.0}),
        (2, {"lr-SGD": 0.25, "lr-SGD-1/pg1": 1.0, "lr-SGD-1/pg2": 2.0}),
    ]


def test_learning_rates_need_a_logger():
    with pytest.raises(ConfigurationError, match="nowhere to write"):
        quiet(callbacks=[LearningRateMonitor()]).fit(made(Regression), regression_batches())


def test_the_progress_bar_is_silent_where_there_is_no_terminal():
    text = io.StringIO()
    bar = ProgressBar(Console(file=text))

    quiet(max_epochs=2, callbacks=[bar]).fit(made(Logs, prog_bar=True), regression_batches())

    assert text.getvalue() == ""


def test_the_progress_bar_shows_epoch_batch_speed_and_metrics():
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=True, width=150))

    quiet(max_epochs=2, callbacks=[bar], log_every_n_steps=1).fit(
        made(Logs, prog_bar=True), regression_batches()
    )

    shown = text.getvalue()
    for part in ("epoch 0", "epoch 1", "5/5", "batches/s", "value 4"):
        assert part in shown


def test_hooks_are_called_in_their_order():
    calls = []

    class Hooked(Regression):
        pass

    names = (
        "setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
        "on_before_zero_grad", "on_before_backward", "on_after_backward",
        "on_before_optimizer_step", "on_train_batch_end", "on_validation_start",
        "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end",
        "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end", "on_train_end",
        "on_fit_end", "teardown",
    )  # fmt: skip
    for name in names:
        setattr(Hooked, name, lambda self, *args, name=name: calls.append(f"module {name}"))
    Watching = type(  # noqa: N806
        "Watching",
        (Callback,),
        {name: lambda self, *args, name=name: calls.append(f"callback {name}") for name in names},
    )

    quiet(max_epochs=1, callbacks=[Watching()]).fit(
        made(Hooked), regression_batches(1), regression_batches(1)
    )

    assert calls == [f"{who} {name}" for name in names for who in ("callback", "module")]


def test_an_exception_is_told_to_callbacks_and_comes_out():
    told = []

    class Watches(Callback):
        def on_exception(self, trainer, module, exception):
            told.append(exception)

    class Fails(Regression):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        quiet(callbacks=[Watches()]).fit(made(Fails), regression_batches())

    assert told == [caught.value]
