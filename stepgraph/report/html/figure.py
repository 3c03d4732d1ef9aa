"""The frame around a drawing that can be moved and zoomed."""

from __future__ import annotations

_BUTTONS = (
    '<div class="tools"><button data-zoom="out" aria-label="zoom out">&minus;</button>'
    '<button data-zoom="in" aria-label="zoom in">+</button>'
    '<button data-zoom="fit" aria-label="show all, or the beginning">&#x2922;</button></div>'
)


def zoomable(drawing: str, *, sideways: bool = False) -> str:
    """Return a drawing in a frame with zoom buttons.

    Args:
        drawing: An SVG element.
        sideways: Whether zooming stretches the drawing in x only.
    """
    zoom = ' data-zoom="x"' if sideways else ""
    return f'<div class="figure zoomable"{zoom}>{drawing}{_BUTTONS}</div>'
