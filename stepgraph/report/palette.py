"""A colour for every kind of node: the same in a terminal, on a page and in a timeline."""

from __future__ import annotations

COLOURS = {
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
    "compiled": "#2f9fd0",
    "host": "#5f6b7a",
    "call": "#5f6b7a",
}
"""By kind; `compiled` is code across kinds, `host` what a call takes beside its nodes."""

OTHER = "#8a94a3"


def colour_of(kind: str) -> str:
    """Return the colour of a kind, as `#rrggbb`."""
    return COLOURS.get(kind, OTHER)
