"""Run by `torchrun` in two processes, and in one: the seed's toggled GAN, and what goes with it.

Usage: `distributed_gan.py FOLDER`. Each process writes what it ended with.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

import stepgraph
from stepgraph import Callback, EarlyStopping, ModelCheckpoint, Module, Trainer

EPOCHS, SAMPLES, JOINT_BATCH = 2, 40, 8  # five batches an epoch: two windows and a short one


class ToggledGAN(Module):
    """Accumulates over two batches; reduces gradients once a window, or once a batch."""

    def __init__(self, accumulates):
        super().__init__()
        self.automatic_optimization = False
        self.accumulates = accumulates
        self.G = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(0.2), nn.Linear(6, 8))
        self.D = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
        self.criterion = nn.BCEWithLogitsLoss()

    def configure_optimizers(self):
        g_opt = torch.optim.Adam(self.G.parameters(), lr=1e-2)
        d_opt = torch.optim.Adam(self.D.parameters(), lr=1e-2)
        return g_opt, d_opt

    @stepgraph.compile(on_fallback="silent")
    def training_step(self, batch, batch_idx):
        g_opt, d_opt = self.optimizers()
        X, Z = batch  # noqa: N806
        X.requires_grad = True
        real_label = torch.ones((X.shape[0], 1), device=self.device)
        fake_label = torch.zeros((X.shape[0], 1), device=self.device)
        is_last_batch_to_accumulate = (batch_idx + 1) % 2 == 0 or self.trainer.is_last_batch
        sync_grad = is_last_batch_to_accumulate or not self.accumulates
        g_X = self.G(Z)  # noqa: N806

        with d_opt.toggle_model(sync_grad=sync_grad):
            errD_real = self.criterion(self.D(X), real_label)  # noqa: N806
            errD_fake = self.criterion(self.D(g_X.detach()), fake_label)  # noqa: N806
            errD = errD_real + errD_fake  # noqa: N806
            self.manual_backward(errD)
            if is_last_batch_to_accumulate:
                d_opt.step()
                d_opt.zero_grad()

        with g_opt.toggle_model(sync_grad=sync_grad):
            errG = self.criterion(self.D(g_X), real_label)  # noqa: N806
            self.manual_backward(errG)
            if is_last_batch_to_accumulate:
                g_opt.step()
                g_opt.zero_grad()

        self.log("loss", errD, on_step=False, on_epoch=True, sync_dist=True)


class Automatic(Module):
    """One optimizer in automatic mode, compiled, accumulating over two batches."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(8, 1)

    def training_step(self, batch):
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Normalised(Module):
    """Running means, dropout, and decisions by a metric that differs between processes."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 1)
        )

    def training_step(self, batch):
        loss = self.model(batch[0]).square().mean()
        self.log("score", loss * (1 + 9 * self.trainer.rank), on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=0.1)
        plateau = ReduceLROnPlateau(opt, factor=0.5, patience=0, threshold=0.5)
        return opt, {"scheduler": plateau, "monitor": "score"}


class SavesInWindow(Callback):
    """Saves where one batch of a window of two is done."""

    runs_last = True

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            trainer.save_checkpoint(self.path)


class AllReduces:
    """Counts the all-reduces of more than a number, by whoever makes them."""

    def __init__(self):
        self.count, self.plain = 0, torch.distributed.all_reduce

    def __enter__(self):
        def counted(tensor, *args, **kwargs):
            self.count += tensor.numel() > 1
            return self.plain(tensor, *args, **kwargs)

        torch.distributed.all_reduce = counted
        return self

    def __exit__(self, *_):
        torch.distributed.all_reduce = self.plain


def loader(batch_size):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return DataLoader(TensorDataset(draw(SAMPLES, 8), draw(SAMPLES, 3)), batch_size)


def train(module, trainer, **resume):
    with AllReduces() as reduced:
        trainer.fit(module, loader(JOINT_BATCH // trainer.world_size), **resume)
    return {
        "weights": module.state_dict(),
        "reductions": reduced.count,
        "global_step": trainer.global_step,
        "loss": trainer.callback_metrics.get("loss"),
        "reasons": [step.explain().fallback_reason for step in trainer.steps],
        "rates": [o.param_groups[0]["lr"] for o in trainer.optimizers],
    }


def normalised(folder, *, resumes=False):
    """Train a model with running means; or go on from the middle of its second epoch."""
    callbacks = [
        EarlyStopping("score", patience=3),
        ModelCheckpoint(folder / "best", monitor="score", filename="{score:.9f}"),
        SavesInWindow(folder / "middle"),
    ]
    trainer = Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,
        callbacks=callbacks,
        **{**QUIET, "enable_checkpointing": True, "compile": False},
    )
    torch.manual_seed(50 + resumes)
    module = Normalised()
    torch.manual_seed(10 * trainer.rank)  # dropout differs
    return train(module, trainer, ckpt_path=folder / "middle" if resumes else None)


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


def main(folder):
    """Return what each training ended with."""
    results = {}
    several = torch.distributed.is_torchelastic_launched()  # alone they are compiled elsewhere
    for name in ("accumulate", "always"):
        options = {"strategy": "ddp", "compile": several and name == "accumulate"}
        trainer = Trainer(max_epochs=EPOCHS, **options, **QUIET)
        torch.manual_seed(trainer.rank)  # the first process's weights are everybody's
        results[name] = train(ToggledGAN(name == "accumulate"), trainer)
    trainer = Trainer(max_epochs=EPOCHS, accumulate_grad_batches=2, compile=several, **QUIET)
    torch.manual_seed(trainer.rank)
    results["automatic"] = train(Automatic(), trainer)
    if several:
        results["normalised"] = normalised(folder)
        results["resumed"] = normalised(folder, resumes=True)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    to = Path(sys.argv[1])
    found = main(to)
    torch.save(found, to / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
