"""A training that is killed again and again; run as a script by the tests.

Usage: `killed_training.py FOLDER KILLS`. Prints how often it was killed; the weights at its end are
in `weights.pt`.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from stepgraph import Callback
from stepgraph.train.checkpoints import files
from support.harness import draw
from train.worlds import Regression, made, quiet

EPOCHS = 4


class Noisy(Regression):
    """Uses every source of randomness, a schedule and the state of an optimizer."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        noise = random.random() + float(np.random.rand())
        loss = (nn.functional.dropout(self.model(x), 0.2) - y).square().mean() * noise
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [opt], [{"scheduler": StepLR(opt, 2, 0.9), "interval": "step"}]


class Saves(Callback):
    """Saves after every batch, in the middle of accumulation windows too."""

    runs_last = True

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.path)


def train(path):
    """Train from the checkpoint, if there is one; return the weights."""
    random.seed(1)
    np.random.seed(1)
    module = made(Noisy)
    data = TensorDataset(draw(22, 4), draw(22, 2, seed=1))
    trainer = quiet(max_epochs=EPOCHS, accumulate_grad_batches=4, callbacks=[Saves(path)])
    resume = path if path.exists() else None
    trainer.fit(module, DataLoader(data, 4, shuffle=True), ckpt_path=resume)
    return dict(module.state_dict())


def live(path):
    """Train to the end in a process of its own; return its id."""
    child = os.fork()
    if child:
        return child
    torch.save(train(path), path.with_name("weights.pt"))
    os._exit(0)


def kill(child, path, chance):
    """Kill a process at some moment after its next checkpoint; return whether it was running."""
    before = _written(path)
    while _written(path) == before and os.waitid(os.P_PID, child, _POLL) is None:
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


_POLL = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else None


def main():
    torch.set_num_threads(1)
    path, wanted = Path(sys.argv[1]) / "last.ckpt", int(sys.argv[2])
    chance, kills = random.Random(0), 0
    while kills < wanted and kill(live(path), path, chance):
        kills += 1
        files.read(path)
    os.waitpid(live(path), 0)
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main()
