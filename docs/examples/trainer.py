"""A `Trainer` run with averaged weights, a schedule and checkpoints, interrupted and resumed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from stepgraph import EMA, ModelCheckpoint, Module, Trainer

DIGITS = load_digits()
ALL = TensorDataset(
    torch.tensor(DIGITS.data, dtype=torch.float32) / 16, torch.tensor(DIGITS.target)
)
SEEN, UNSEEN = Subset(ALL, range(1536)), Subset(ALL, range(1536, 1797))


class Reader(Module):
    """Reads 8x8 digits."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss; the trainer clears, differentiates, clips, updates and schedules."""
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log how many digits are read correctly; with averaged weights, as `EMA` is there."""
        x, y = batch
        self.log("right", (self.model(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, dict[str, object]]:
        """Return an optimizer whose learning rate rises and falls, once in the training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1e-2, total_steps=self.hparams.updates
        )
        return optimizer, {"scheduler": cycle, "interval": "step"}


def train(
    folder: Path, *, epochs: int, stop_after: int, resume: bool = False, compile: bool = True
) -> Trainer:
    """Train for `stop_after` of `epochs` epochs, from the start or from the last checkpoint."""
    keeps = ModelCheckpoint(folder, monitor="right", mode="max", save_last=True)
    trainer = Trainer(
        max_epochs=stop_after,
        seed=0,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[EMA(decay=0.98), keeps],
        logger=False,
        enable_progress_bar=False,
        compile=compile,
    )
    torch.manual_seed(0)  # the module is made before `fit` seeds the rest
    module = Reader(updates=12 * epochs)
    loaders = DataLoader(SEEN, 64, shuffle=True), DataLoader(UNSEEN, 261)
    trainer.fit(module, *loaders, ckpt_path=folder / "last.ckpt" if resume else None)
    return trainer


def weights(trainer: Trainer) -> list[Tensor]:
    """Return what a training has learned."""
    return [parameter.detach() for parameter in trainer.module.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors as small as these are not worth sharing out
    epochs = 2 if "--quick" in sys.argv else 20
    with tempfile.TemporaryDirectory() as name:
        whole = train(Path(name, "whole"), epochs=epochs, stop_after=epochs)
        print(whole.steps[0].explain())
        print(f"\n{whole.callback_metrics['right']:.1%} of unseen digits are read correctly")

        train(Path(name, "parts"), epochs=epochs, stop_after=epochs // 2)
        resumed = train(Path(name, "parts"), epochs=epochs, stop_after=epochs, resume=True)
        same = all(map(torch.equal, weights(whole), weights(resumed)))
        print(f"stopped half-way and resumed, the same bits: {same}")
