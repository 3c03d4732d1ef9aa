"""The kinds of nodes in a step graph, and the colour that each kind has everywhere."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """The part a node plays in a training step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    ACCUMULATE = "accumulate"
    ZERO_GRAD = "zero_grad"
    UNSCALE = "unscale"
    GRAD_NORM = "grad_norm"
    CLIP = "clip"
    STEP = "step"
    SCALE_UPDATE = "scale_update"
    LR_STEP = "lr_step"
    CAST = "cast"
    EMA = "ema"
    SYNC = "sync"
    LOG = "log"
    TOGGLE = "toggle"
    OTHER = "other"

    @property
    def colour(self) -> str:
        """Its colour in a terminal, on a page and in a timeline, as `#rrggbb`."""
        return _COLOURS[self.value]


_COLOURS = {
    "forward": "#4c8dff",
    "backward": "#f2784b",
    "accumulate": "#e0a526",
    "zero_grad": "#8a94a3",
    "unscale": "#c58fd9",
    "grad_norm": "#d46fb2",
    "clip": "#b75fd1",
    "step": "#35a86b",
    "scale_update": "#9b7fd9",
    "lr_step": "#7a6ff0",
    "cast": "#3bb3c3",
    "ema": "#2aa198",
    "sync": "#c94f6d",
    "log": "#a3a3a3",
    "toggle": "#b0905a",
    "other": "#7d8f69",
}
