"""The models of the benchmark cases."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Return a perceptron with ReLU between its layers."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """A transformer block, layer norm first.

    Args:
        dim: Width.
        heads: Number of attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next activations: `[batch, tokens, dim]`."""
        batch, tokens, dim = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """A small decoder-only transformer."""

    def __init__(self, *, vocabulary: int, dim: int, layers: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits: `[batch, tokens, vocabulary]`."""
        hidden: Tensor = self.blocks(self.embed(tokens) + self.position)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def convnet() -> nn.Sequential:
    """Return a small convolutional classifier with batch norm, for 3x32x32 images."""
    layers: list[nn.Module] = []
    for n_in, n_out, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2)):
        convolution = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class ManyParameters(nn.Module):
    """Many tiny parameters and hardly any arithmetic: what is left is overhead."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.randn(8) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled by every parameter in turn, added up."""
        return torch.stack([x * scale for scale in self.scales]).sum(0)
