"""Checkpoints: whole or absent, and a resumed run is the run that was not interrupted."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from stepgraph import EMA, Callback, EarlyStopping, ModelCheckpoint
from stepgraph.errors import CheckpointError, ConfigurationError
from stepgraph.torch_private import stop_workers
from stepgraph.train.checkpoints import files
from support.harness import draw, get_randomness
from support.state_walk import Walk
from train import killed_training
from train.killed_training import Noisy
from train.worlds import GAN, Regression, made, quiet, regression_batches, tolerated

EPOCHS = 3


def shuffled(batch_size=4):
    """A loader that draws its order from torch's global generator."""
    return DataLoader(TensorDataset(draw(22, 4), draw(22, 2, seed=1)), batch_size, shuffle=True)


class Validated(Noisy):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.compute_loss(batch))


class NoisyManual(Noisy):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 3)
        if (batch_idx + 1) % 3 == 0:
            opt.step()
            opt.zero_grad()
            self.lr_schedulers().step()


class SavesAt(Callback):
    """Saves after a batch of an epoch, as the last callback."""

    runs_last = True

    def __init__(self, path, epoch, batch):
        self.path, self.place = path, (epoch, batch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            trainer.save_checkpoint(self.path)


def everything(trainer, module):
    """What must agree after a run."""
    return {
        "weights": dict(module.state_dict()),
        "optimizers": [o.optimizer.state_dict() for o in trainer.optimizers],
        "schedulers": [s.state_dict() for s in trainer.schedulers],
        "progress": trainer.progress.state_dict(),
        "metrics": dict(trainer.callback_metrics),
        "callbacks": [c.state_dict() for c in trainer.callbacks],
        "randomness": get_randomness(),
    }


def assert_same_run(left, right):
    Walk().compare("run", everything(*left), everything(*right))


def seeded(world):
    random.seed(1)
    np.random.seed(1)
    return made(world)


OPTIONS = {
    "plain": {},
    "accumulating": {"accumulate_grad_batches": 4},
    "scaled": {"precision": "16-mixed", "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("place", [(0, 2), (1, 0), (1, 4), (1, 5), (2, 1)])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, options, place):
    path = tmp_path / "middle.ckpt"
    settings = {"max_epochs": EPOCHS, "val_check_interval": 3, **OPTIONS[options]}
    whole, whole_module = quiet(callbacks=[SavesAt(path, *place)], **settings), seeded(Validated)
    whole.fit(whole_module, shuffled(), shuffled())
    expected = everything(whole, whole_module)

    torch.manual_seed(99)  # whatever was drawn before must not matter
    resumed, module = quiet(callbacks=[SavesAt(path, 9, 9)], **settings), Validated()
    resumed.fit(module, shuffled(), shuffled(), ckpt_path=path)

    Walk().compare("run", expected, everything(resumed, module))


def test_a_manual_run_is_resumed_within_a_window(tmp_path):
    path = tmp_path / "middle.ckpt"
    whole, whole_module = quiet(callbacks=[SavesAt(path, 1, 3)]), seeded(NoisyManual)
    whole.fit(whole_module, shuffled())
    expected = everything(whole, whole_module)

    resumed, module = quiet(callbacks=[SavesAt(path, 9, 9)]), NoisyManual()
    resumed.fit(module, shuffled(), ckpt_path=path)

    Walk().compare("run", expected, everything(resumed, module))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gan_with_its_average_is_resumed(tmp_path, compiled):
    class Plays(GAN):
        def training_step(self, batch, batch_idx, optimizer_idx):
            x, _ = batch
            if optimizer_idx == 0:
                return -self.D(self.sample_G(len(x))).mean()
            return self.D(self.sample_G(len(x)).detach()).mean() - self.D(x).mean()

    loader = DataLoader(TensorDataset(draw(20, 8), torch.zeros(20)), 4, shuffle=True)
    path = tmp_path / "middle.ckpt"

    def trainer(epoch, **options):
        callbacks = [EMA(0.9, update_every_n_steps=2, start_step=3), SavesAt(path, epoch, 2)]
        return quiet(max_epochs=2, callbacks=callbacks, **options)

    whole, whole_module = trainer(1), made(Plays)
    whole.fit(whole_module, loader)
    expected = everything(whole, whole_module)
    resumed, module = trainer(9, compile=compiled), Plays()
    resumed.fit(module, loader, ckpt_path=path)

    Walk().compare("run", expected, everything(resumed, module))


class Generated(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ((draw(4, seed=i) + torch.rand(1), draw(2, seed=-i)) for i in range(22))


def test_a_stream_is_resumed_within_a_window(tmp_path):
    path = tmp_path / "middle.ckpt"
    loader = DataLoader(Generated(), batch_size=4)
    settings = {"accumulate_grad_batches": 4, "max_epochs": 2}
    whole, whole_module = quiet(callbacks=[SavesAt(path, 1, 1)], **settings), seeded(Noisy)
    whole.fit(whole_module, loader)
    expected = everything(whole, whole_module)

    resumed, module = quiet(callbacks=[SavesAt(path, 9, 9)], **settings), Noisy()
    resumed.fit(module, loader, ckpt_path=path)

    Walk().compare("run", expected, everything(resumed, module))


class Augmented(torch.utils.data.Dataset):
    """Samples that draw random numbers where they are loaded: in a worker."""

    def __init__(self, random):
        self.random = random

    def __len__(self):
        return 22

    def __getitem__(self, i):
        noise = torch.rand(4) + random.random() + np.random.rand() if self.random else 0.0
        return draw(4, seed=i) + noise, draw(2, seed=-i - 1)


class SavesAfterEpoch(SavesAt):
    def on_train_epoch_end(self, trainer, module):
        if self.place == (trainer.current_epoch, "end"):
            trainer.save_checkpoint(self.path)


def with_workers(*, random, persistent):
    data = Augmented(random)
    options = {"shuffle": True, "num_workers": 2, "persistent_workers": persistent}
    return DataLoader(data, 4, **options)


@pytest.mark.parametrize(
    ("persistent", "place"), [(False, (1, 2)), (True, (1, 2)), (True, (0, "end"))]
)
def test_a_run_with_workers_is_resumed(tmp_path, persistent, place):
    """Workers that live through epochs draw no random numbers here: see the next test."""
    path = tmp_path / "middle.ckpt"

    def run(place, **resume):
        loader = with_workers(random=not persistent, persistent=persistent)
        trainer = quiet(max_epochs=2, callbacks=[SavesAfterEpoch(path, *place)])
        module = seeded(Noisy)
        with tolerated(DeprecationWarning, RuntimeWarning):  # of os.fork; of the next test
            trainer.fit(module, loader, **resume)
        stop_workers(loader)
        return everything(trainer, module)

    expected = run(place)
    torch.manual_seed(99)

    Walk().compare("run", expected, run((9, 9), ckpt_path=path))


def test_workers_that_do_not_live_on_say_so(tmp_path):
    path = tmp_path / "some.ckpt"
    first, second = (with_workers(random=True, persistent=True) for _ in range(2))
    trainer = quiet(max_epochs=1)
    with tolerated(DeprecationWarning):
        trainer.fit(seeded(Noisy), first)
    trainer.save_checkpoint(path)
    stop_workers(first)

    with tolerated(DeprecationWarning), pytest.warns(RuntimeWarning, match="persistent_workers"):
        quiet(max_epochs=2).fit(Noisy(), second, ckpt_path=path)

    stop_workers(second)


@pytest.mark.parametrize("with_generator", [False, True])
def test_a_longer_training_goes_on_from_the_end_of_a_shorter_one(tmp_path, with_generator):
    def loader():
        generator = torch.Generator().manual_seed(5) if with_generator else None
        data = TensorDataset(draw(22, 4), draw(22, 2, seed=1))
        return DataLoader(data, 4, shuffle=True, generator=generator)

    def trainer(epochs):
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
        return quiet(max_epochs=epochs, enable_checkpointing=True, callbacks=[checkpoint])

    whole, whole_module = quiet(max_epochs=4), seeded(Noisy)
    whole.fit(whole_module, loader())
    expected = everything(whole, whole_module)

    trainer(2).fit(seeded(Noisy), loader())
    resumed, module = trainer(4), Noisy()
    resumed.fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")

    found = everything(resumed, module)
    for part in ("weights", "optimizers", "schedulers", "progress", "randomness"):
        Walk().compare(part, expected[part], found[part])


def test_max_steps_can_be_raised_from_the_last_checkpoint(tmp_path):
    def trainer(steps):
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
        return quiet(
            max_epochs=None, max_steps=steps, enable_checkpointing=True, callbacks=[checkpoint]
        )

    whole, whole_module = trainer(15), seeded(Noisy)
    whole.fit(whole_module, shuffled())
    expected = whole_module.state_dict()

    trainer(8).fit(seeded(Noisy), shuffled())
    module = Noisy()
    trainer(15).fit(module, shuffled(), ckpt_path=tmp_path / "last.ckpt")

    Walk().compare("weights", dict(expected), dict(module.state_dict()))


def saved(tmp_path, **options):
    path = tmp_path / "some.ckpt"
    trainer = quiet(max_epochs=1, **options)
    trainer.fit(made(Regression), regression_batches())
    trainer.save_checkpoint(path)
    return path


class OtherShape(Regression):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(4, 2)


class TwoOptimizers(Regression):
    def training_step(self, batch, batch_idx, optimizer_idx):
        return self.compute_loss(batch)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.model[::2]]


class OtherOptimizer(Regression):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class WithPlateau(Regression):
    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return {"optimizer": opt, "lr_scheduler": ReduceLROnPlateau(opt), "monitor": "loss"}


@pytest.mark.parametrize(
    ("world", "options", "words"),
    [
        (OtherShape, {}, "model.weight"),
        (TwoOptimizers, {}, "optimizers"),
        (OtherOptimizer, {}, "optimizers"),
        (WithPlateau, {}, "schedulers"),
        (Regression, {"precision": "16-mixed"}, "loss scale"),
        (Regression, {"callbacks": [EMA()]}, "callbacks"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_whole(tmp_path, world, options, words):
    path = saved(tmp_path)
    module = made(world)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    with pytest.raises(CheckpointError, match=words):
        quiet(**options).fit(module, regression_batches(), ckpt_path=path)

    Walk().compare("weights", before, dict(module.state_dict()))


@pytest.mark.parametrize("limit", [{"max_epochs": 0}, {"max_epochs": 3, "max_steps": 4}])
def test_a_checkpoint_beyond_the_end_of_the_training_is_refused(tmp_path, limit):
    path = saved(tmp_path)  # one epoch of five updates

    with pytest.raises(ConfigurationError, match="before the checkpoint"):
        quiet(**limit).fit(made(Regression), regression_batches(), ckpt_path=path)
    quiet(max_epochs=1).fit(made(Regression), regression_batches(), ckpt_path=path)


def test_a_damaged_file_is_an_error(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-400])

    with pytest.raises(CheckpointError, match="cannot be read"):
        quiet().fit(made(Regression), regression_batches(), ckpt_path=path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        quiet().fit(made(Regression), regression_batches(), ckpt_path=tmp_path / "absent")


def test_plain_weights_are_no_checkpoint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match="not a checkpoint"):
        quiet().fit(made(Regression), regression_batches(), ckpt_path=tmp_path / "weights.pt")


def test_an_object_that_only_pickle_knows_is_refused_before_writing(tmp_path):
    class Adds(Regression):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = {"deep": [object()]}

    trainer = quiet(max_epochs=1)
    trainer.fit(made(Adds), regression_batches())

    with pytest.raises(CheckpointError, match=r"\['mine'\]\['deep'\]\[0\]"):
        trainer.save_checkpoint(tmp_path / "some.ckpt")
    assert not list(tmp_path.iterdir())


def test_hooks_may_add_to_a_checkpoint_and_read_it(tmp_path):
    class Adds(Regression):
        extra = None

        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = [1, "two"]

        def on_load_checkpoint(self, checkpoint):
            self.extra = checkpoint["mine"]

    trainer = quiet(max_epochs=1)
    trainer.fit(made(Adds), regression_batches())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    module = made(Adds)
    quiet(max_epochs=2).fit(module, regression_batches(), ckpt_path=tmp_path / "some.ckpt")

    assert module.extra == [1, "two"]


def test_a_checkpoint_within_a_training_step_is_refused(tmp_path):
    class Saves(Regression):
        def training_step(self, batch, batch_idx):
            self.trainer.save_checkpoint(tmp_path / "some.ckpt")

    with pytest.raises(ConfigurationError, match="could not be resumed"):
        quiet().fit(made(Saves), regression_batches())


def test_the_best_are_kept_and_the_last(tmp_path):
    values = iter([3.0, 1.0, 2.0, 0.5, 4.0])

    class Scores(Regression):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 0:
                self.log("score", next(values))

    checkpoint = ModelCheckpoint(
        tmp_path, monitor="score", save_top_k=2, save_last=True, filename="{epoch}-{score:.1f}"
    )
    trainer = quiet(max_epochs=5, callbacks=[checkpoint], enable_checkpointing=True)
    trainer.fit(made(Scores), regression_batches(), regression_batches())

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch=1-score=1.0.ckpt", "epoch=3-score=0.5.ckpt", "last.ckpt"]
    assert checkpoint.best_model_path.endswith("epoch=3-score=0.5.ckpt")
    assert checkpoint.best_model_score == 0.5
    assert files.read(tmp_path / "last.ckpt")["epoch"] == 4


def test_early_stopping_goes_on_counting_after_a_resume(tmp_path):
    class Constant(Regression):
        def validation_step(self, batch, batch_idx):
            self.log("score", 1.0)

    def trainer(epochs):
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
        stopping = EarlyStopping("score", patience=4)
        return quiet(max_epochs=epochs, callbacks=[checkpoint, stopping], enable_checkpointing=True)

    trainer(3).fit(made(Constant), regression_batches(), regression_batches())
    resumed = trainer(20)
    resumed.fit(made(Constant), regression_batches(), regression_batches(), tmp_path / "last.ckpt")

    assert resumed.current_epoch == 5


def test_a_training_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path):
    """Every kill leaves a whole checkpoint, and the next life goes on from it."""
    script = Path(killed_training.__file__)
    root = script.parents[2]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "15"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= 5
    expected = killed_training.train(tmp_path / "uninterrupted.ckpt")
    Walk().compare("weights", expected, torch.load(tmp_path / "weights.pt"))
