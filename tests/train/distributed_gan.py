"""Run by `torchrun` in two processes, and in one: the seed's toggled GAN.

Usage: `distributed_gan.py FOLDER accumulate|always`. Each process writes what it ended with.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stepgraph
from stepgraph import Module, Trainer

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


def loader(batch_size):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return DataLoader(TensorDataset(draw(SAMPLES, 8), draw(SAMPLES, 3)), batch_size)


def train(module, trainer):
    trainer.fit(module, loader(JOINT_BATCH // trainer.world_size))
    sync = trainer.updates.sync
    explained = [step.explain() for step in trainer.steps]
    return {
        "weights": module.state_dict(),
        "reductions": 0 if sync is None else sync.reductions,
        "global_step": trainer.global_step,
        "loss": trainer.callback_metrics.get("loss"),
        "reasons": [e.fallback_reason for e in explained],
    }


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    results = {}
    for name in ("accumulate", "always"):
        options = {"strategy": "ddp", "accelerator": "cpu", "compile": name == "accumulate"}
        trainer = Trainer(max_epochs=EPOCHS, **options, **quiet)
        torch.manual_seed(trainer.rank)  # the first process's weights are everybody's
        results[name] = train(ToggledGAN(name == "accumulate"), trainer)
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", accumulate_grad_batches=2, **quiet)
    torch.manual_seed(trainer.rank)
    results["automatic"] = train(Automatic(), trainer)
    trainer.save_checkpoint(folder / f"of-{trainer.world_size}.ckpt")
    torch.save(results, folder / f"result-{trainer.world_size}-{trainer.rank}.pt")
    if trainer.world_size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
