"""A GAN with two optimizers learns to draw 8x8 digits: manual optimization in a `Module`."""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import stepgraph
from stepgraph import Module, Trainer

LATENT, WIDTH = 32, 256


class SimpleGAN(Module):
    """A generator and a discriminator, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.G = nn.Sequential(
            nn.Linear(LATENT, WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 64),
            nn.Tanh(),
        )
        self.D = nn.Sequential(nn.Linear(64, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))
        self.criterion = nn.BCEWithLogitsLoss()

    def sample_G(self, n: int) -> Tensor:  # noqa: N802 - the name in the seed of this project
        """Draw `n` images: `[n, 64]` in [-1, 1]."""
        return self.G(torch.randn(n, LATENT, device=self.device))

    @stepgraph.compile(keep_grads=False)  # the generator's backward leaves none on D
    def training_step(self, x: Tensor, batch_idx: int) -> None:
        """Update the discriminator, then the generator."""
        g_opt, d_opt = self.optimizers()
        real = torch.ones((x.shape[0], 1), device=self.device)
        fake = torch.zeros((x.shape[0], 1), device=self.device)
        g_x = self.sample_G(x.shape[0])

        d_loss = self.criterion(self.D(x), real) + self.criterion(self.D(g_x.detach()), fake)
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()

        g_loss = self.criterion(self.D(g_x), real)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()

        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def configure_optimizers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """Return the optimizers of the generator and of the discriminator."""
        g_opt = torch.optim.Adam(self.G.parameters(), lr=4e-4, betas=(0.5, 0.999))
        d_opt = torch.optim.Adam(self.D.parameters(), lr=4e-4, betas=(0.5, 0.999))
        return g_opt, d_opt


def train(epochs: int, *, compile: bool = True) -> SimpleGAN:
    """Train a GAN from a fixed seed."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    torch.manual_seed(0)
    loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
    gan = SimpleGAN()
    quiet = {"logger": False, "enable_checkpointing": False}
    Trainer(max_epochs=epochs, compile=compile, **quiet).fit(gan, loader)
    return gan


def drawn(image: Tensor) -> list[str]:
    """Return an image as lines of text."""
    shades = " .:-=+*#%@"
    return ["".join(2 * shades[int((p + 1) * 4.99)] for p in row) for row in image.view(8, 8)]


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors as small as these are not worth sharing out
    gan = train(1 if "--quick" in sys.argv else 60)
    print(gan.training_step.explain())
    with torch.no_grad():
        images = gan.eval().sample_G(4)
    print(*map("  ".join, zip(*map(drawn, images), strict=True)), sep="\n")
