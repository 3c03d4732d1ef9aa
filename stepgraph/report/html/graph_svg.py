"""A step graph as SVG: boxes in layers, and arrows for their dependencies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from stepgraph.report.html.boxes import Arrow, Box

_WIDTH, _HEIGHT = 216, 64  # of a box, in units of the drawing
_GAP_X, _GAP_Y = 26, 34
_LONGEST = 30  # letters that fit into a box


@dataclass(frozen=True)
class Measured:
    """The measurement that a drawing shows in a box.

    Attributes:
        text: Duration, or the compiled region that contains the box.
        share: Share of the call, from 0 to 1; None if not known.
    """

    text: str
    share: float | None


def draw_step(
    drawn: Sequence[Box], arrows: Sequence[Arrow], key: str, measured: Mapping[int, Measured]
) -> str:
    """Return a drawing in which each box stands below all boxes that must run before it.

    Args:
        drawn: The boxes, in program order.
        arrows: The dependencies between them.
        key: Prefix of the drawing's keys, unique on the page.
        measured: Measurements by number of the box, where known.
    """
    places, columns, rows = _places(drawn, arrows)
    width = columns * (_WIDTH + _GAP_X) + _GAP_X
    height = rows * (_HEIGHT + _GAP_Y) + _GAP_Y
    parts = [
        f'<svg class="graph" viewBox="0 0 {width} {height}" role="img" aria-label="step graph">',
        f'<defs><marker id="tip-{key}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
    ]
    parts += [_arrow(arrow, places, key) for arrow in arrows]
    parts += [_box(box, places[box.number], key, measured.get(box.number)) for box in drawn]
    return "\n".join([*parts, "</svg>"])


def _places(
    drawn: Sequence[Box], arrows: Sequence[Arrow]
) -> tuple[dict[int, tuple[float, float]], int, int]:
    """Return the upper left corner of every box, and the number of columns and of rows.

    Every layer is a centred row. Within a row, boxes are sorted by the mean position of their
    sources, which keeps arrows short.
    """
    layers: dict[int, list[Box]] = defaultdict(list)
    for box in drawn:
        layers[box.layer].append(box)
    above: dict[int, list[int]] = defaultdict(list)
    for arrow in arrows:
        above[arrow.target].append(arrow.source)
    columns = max(map(len, layers.values()), default=1)
    places: dict[int, tuple[float, float]] = {}
    for layer in sorted(layers):
        row = sorted(
            layers[layer], key=lambda box: (_mean_x(above[box.number], places), box.number)
        )
        left = (columns - len(row)) * (_WIDTH + _GAP_X) / 2 + _GAP_X
        for i, box in enumerate(row):
            places[box.number] = left + i * (_WIDTH + _GAP_X), layer * (_HEIGHT + _GAP_Y) + _GAP_Y
    return places, columns, len(layers)


def _mean_x(sources: Sequence[int], places: Mapping[int, tuple[float, float]]) -> float:
    """Return the mean x of the boxes that a box depends on."""
    return sum(places[source][0] for source in sources) / len(sources) if sources else 0.0


def _box(box: Box, place: tuple[float, float], key: str, measured: Measured | None) -> str:
    x, y = place
    operators = sum(count for _, count in box.operators)
    details = [f"{operators} op{'' if operators == 1 else 's'}"] if operators else []
    details += [measured.text] if measured else []
    return (
        f'<g class="node is-{escape(box.kind)}" tabindex="0" role="button" '
        f'data-kind="{escape(box.kind)}" data-number="{box.number}" '
        f'data-details="{key}-{box.number}" transform="translate({x:.1f},{y:.1f})" '
        f'aria-label="{escape(f"{box.kind}: {box.text}")}">'
        f'<rect class="frame" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
        f'<rect class="stripe" width="5" height="{_HEIGHT}" rx="2.5"/>'
        f'<text x="15" y="18" class="label">{escape(box.kind)}</text>'
        f'<text x="{_WIDTH - 9}" y="18" class="small" text-anchor="end">{escape(_at(box))}</text>'
        f'<text x="15" y="36" class="text">{escape(_shortened(box.headline))}</text>'
        f'<text x="15" y="53" class="small">{escape(" · ".join(details))}</text>'
        f"{_bar(measured)}</g>"
    )


def _bar(measured: Measured | None) -> str:
    """Return a bar for the share of the call that a box takes."""
    if measured is None or measured.share is None:
        return ""
    left, width = 132, _WIDTH - 142
    return (
        f'<rect class="track" x="{left}" y="46" width="{width}" height="6" rx="3"/>'
        f'<rect class="share" x="{left}" y="46" width="{width * measured.share:.1f}" height="6" '
        'rx="3"/>'
    )


def _at(box: Box) -> str:
    return (box.at or "").replace("\\", "/").rpartition("/")[2]


def _arrow(arrow: Arrow, places: Mapping[int, tuple[float, float]], key: str) -> str:
    (left, top), (to_left, to_y) = places[arrow.source], places[arrow.target]
    x, y, to_x = left + _WIDTH / 2, top + _HEIGHT, to_left + _WIDTH / 2
    half = (y + to_y) / 2
    curve = f"M{x:.1f},{y:.1f} C{x:.1f},{half:.1f} {to_x:.1f},{half:.1f} {to_x:.1f},{to_y:.1f}"
    return (
        f'<path class="arrow {arrow.kind}" data-from="{arrow.source}" data-to="{arrow.target}" '
        f'd="{curve}" marker-end="url(#tip-{key})"/>'
    )


def _shortened(text: str) -> str:
    text = text.replace("->", "→")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"
