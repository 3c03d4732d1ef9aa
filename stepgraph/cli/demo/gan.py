"""The GAN of `stepgraph demo`: manual optimization of two models, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import stepgraph

PIXELS = 8 * 8
LATENT = 32
WIDTH = 256


class SimpleGAN(nn.Module):
    """A generator and a discriminator of 8x8 images, each with its own optimizer.

    `training_step` is plain PyTorch; the decorator is the only use of stepgraph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.G = generator()
        self.D = discriminator()
        self.criterion = nn.BCEWithLogitsLoss()
        self.g_opt, self.d_opt = self.configure_optimizers()

    def configure_optimizers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """Return the optimizers of the generator and of the discriminator."""
        g_opt = torch.optim.Adam(self.G.parameters(), lr=4e-4, betas=(0.5, 0.999))
        d_opt = torch.optim.Adam(self.D.parameters(), lr=4e-4, betas=(0.5, 0.999))
        return g_opt, d_opt

    def sample_z(self, n: int) -> Tensor:
        """Return random inputs of the generator, `[n, LATENT]`."""
        return torch.randn(n, LATENT)

    @stepgraph.compile
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator; return both losses."""
        x, _ = batch
        batch_size = x.shape[0]
        real_label = torch.ones((batch_size, 1))
        fake_label = torch.zeros((batch_size, 1))
        g_x = self.G(self.sample_z(batch_size))

        d_loss_real = self.criterion(self.D(x), real_label)
        d_loss_fake = self.criterion(self.D(g_x.detach()), fake_label)
        d_loss = d_loss_real + d_loss_fake
        self.d_opt.zero_grad()
        d_loss.backward()
        self.d_opt.step()

        g_loss = self.criterion(self.D(g_x), real_label)
        self.g_opt.zero_grad()
        g_loss.backward()
        self.g_opt.step()
        return {"g_loss": g_loss, "d_loss": d_loss}

    @torch.no_grad()
    def draw(self, z: Tensor) -> Tensor:
        """Return the images generated from `z`, `[n, 8, 8]` in [-1, 1]; the model is unchanged."""
        self.G.eval()
        images: Tensor = self.G(z)
        self.G.train()
        return images.view(-1, 8, 8)


def generator() -> nn.Sequential:
    """Return the generator: `[n, LATENT]` to `[n, PIXELS]` in [-1, 1]."""
    return nn.Sequential(
        nn.Linear(LATENT, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, PIXELS),
        nn.Tanh(),
    )


def discriminator() -> nn.Sequential:
    """Return the discriminator: `[n, PIXELS]` to `[n, 1]`, the logit of a real image."""
    return nn.Sequential(
        nn.Linear(PIXELS, WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, 1),
    )
