"""The picture of `stepgraph demo`: real digits above generated digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stepgraph.cli.demo.optional_packages import optional_module

ROWS, COLUMNS = 3, 14
SIZE = (1120, 800)  # pixels, width first
_DPI = 100


def save_picture(path: Path, sections: Mapping[str, Tensor]) -> None:
    """Write a PNG of `SIZE` pixels with a titled grid of images for each section, in order.

    Args:
        path: File to write; replaced if it exists.
        sections: By title: `[ROWS * COLUMNS, 8, 8]` images in [-1, 1].
    """
    figure_module = optional_module("matplotlib.figure")
    width, height = SIZE
    figure = figure_module.Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.95, hspace=0.16)
    panels = figure.subplots(len(sections), 1, squeeze=False)
    for axes, (title, images) in zip(panels.flat, sections.items(), strict=True):
        axes.imshow(grid(images).numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(title, loc="left", fontsize=13)
        axes.set_axis_off()
    figure.savefig(path, format="png")


def grid(images: Tensor) -> Tensor:
    """Return `[ROWS * COLUMNS, 8, 8]` images as one image, two white pixels apart."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    tiles = padded.view(ROWS, COLUMNS, *padded.shape[1:]).permute(0, 2, 1, 3)
    return tiles.reshape(ROWS * padded.shape[1], COLUMNS * padded.shape[2])
