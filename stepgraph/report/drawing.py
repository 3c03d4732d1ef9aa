"""Drawings as SVG: the boxes of a step, and the bytes alive along it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from stepgraph.report.boxes import Arrow, Box

_WIDTH, _HEIGHT = 168, 44  # of a box, in units of the drawing
_GAP_X, _GAP_Y = 20, 30


def draw_step(drawn: Sequence[Box], arrows: Sequence[Arrow], key: str) -> str:
    """Return a drawing in which boxes stand below all boxes that must come before them.

    Args:
        drawn: The boxes, in program order.
        arrows: What must stay ahead of what.
        key: What tells this drawing from others on the page.
    """
    places, columns, rows = _places(drawn)
    width = columns * (_WIDTH + _GAP_X) + _GAP_X
    height = rows * (_HEIGHT + _GAP_Y) + _GAP_Y
    parts = [
        f'<svg class="graph" viewBox="0 0 {width} {height}" style="max-width:{width * 1.5:.0f}px" '
        f'role="img" aria-label="step graph">'
    ]
    parts += [_arrow(arrow, places) for arrow in arrows]
    parts += [_box(box, places[box.number], key) for box in drawn]
    return "\n".join([*parts, "</svg>"])


def draw_memory(live: Sequence[tuple[str, int]]) -> str:
    """Return a drawing of the bytes alive along a step, with the peak marked.

    Args:
        live: For every operator in order: the box it is in, and the bytes.
    """
    width, height = 600, 120
    highest = max((n_bytes for _, n_bytes in live), default=0)
    if not highest:
        return ""
    across = max(len(live) - 1, 1)
    points = [(width * i / across, height * (1 - n / highest)) for i, (_, n) in enumerate(live)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    place = max(range(len(live)), key=lambda i: live[i][1])
    x = points[place][0]
    return (
        f'<svg class="memory" viewBox="-6 -10 {width + 12} {height + 14}" role="img" '
        f'aria-label="bytes alive"><polygon points="0,{height} {line} {width},{height}"/>'
        f'<circle cx="{x:.1f}" cy="0" r="5"><title>{escape(live[place][0])}</title></circle></svg>'
    )


def _places(drawn: Sequence[Box]) -> tuple[dict[int, tuple[float, float]], int, int]:
    """Return the upper left corner of every box; every layer is a row, centred."""
    layers: dict[int, list[Box]] = defaultdict(list)
    for box in drawn:
        layers[box.layer].append(box)
    columns = max(map(len, layers.values()), default=1)
    places: dict[int, tuple[float, float]] = {}
    for layer, row in layers.items():
        left = (columns - len(row)) * (_WIDTH + _GAP_X) / 2 + _GAP_X
        for i, box in enumerate(row):
            places[box.number] = left + i * (_WIDTH + _GAP_X), layer * (_HEIGHT + _GAP_Y) + _GAP_Y
    return places, columns, len(layers)


def _box(box: Box, place: tuple[float, float], key: str) -> str:
    x, y = place
    label = _shortened(box.text, 40)
    return (
        f'<g class="node is-{escape(box.kind)}" tabindex="0" role="button" '
        f'data-facts="{key}-{box.number}" transform="translate({x:.1f},{y:.1f})">'
        f"<title>{escape(box.kind)}: {escape(box.text)}</title>"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<svg width="{_WIDTH - 6}" height="{_HEIGHT}">'  # cuts off what is wider
        f'<text x="8" y="18" class="kind">{escape(box.kind)}</text>'
        f'<text x="8" y="34">{escape(label)}</text></svg></g>'
    )


def _arrow(arrow: Arrow, places: dict[int, tuple[float, float]]) -> str:
    (left, top), (to_left, to_y) = places[arrow.source], places[arrow.target]
    x, y, to_x = left + _WIDTH / 2, top + _HEIGHT, to_left + _WIDTH / 2
    half = (y + to_y) / 2
    curve = f"M{x:.1f},{y:.1f} C{x:.1f},{half:.1f} {to_x:.1f},{half:.1f} {to_x:.1f},{to_y:.1f}"
    return f'<path class="{arrow.kind}" d="{curve}"/>'


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."
