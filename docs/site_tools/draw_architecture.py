"""Draw `docs/images/architecture.svg`: the packages on their layers, and their imports.

`python -m docs.site_tools.draw_architecture` writes the file; a test compares it with the sources.
Layers come from the import contract in pyproject.toml, arrows from the import lines of the files,
names of folders from the file system, and texts from docstrings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

import networkx as nx

from docs.site_tools.import_graph import PACKAGE, ROOT, entries, layers, package_graph, summary

FILE = ROOT / "docs/images/architecture.svg"

WAY = ("compiler", "capture", "ir", "passes", "lowering", "runtime")
"""The packages that a step goes through, in the order of its first captured call."""

_WIDTH = 760
_GAP_X, _GAP_Y = 26, 46
_BOX, _LANE = 206, 14  # widths of a box, and of an arrow that passes a layer
_MARGIN = 14
_LETTERS = 29  # of a text line in a box
_FOLDER_LETTERS = 27  # the same in the monospaced font
_SWEEPS = 12
_THICKNESS = ((4, 1.2), (10, 2.0), (20, 3.0), (10**6, 4.2))  # for fewer import lines than that

_STYLE = """
  .ink { fill: #16202c; } .soft { fill: #5d6b7c; } .layer { fill: #f5f7fa; }
  .box { fill: #ffffff; stroke: #c6cfd9; stroke-width: 1.2; }
  .box.way { stroke: #00796b; stroke-width: 2; } .badge { fill: #00796b; }
  .arrow { fill: none; stroke: #9aa7b5; } .arrow.way { stroke: #00796b; }
  .head { fill: #9aa7b5; } .head.way { fill: #00796b; } .number { fill: #ffffff; }
  text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
  .name { font: 650 14px ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace; }
  .folders { font: 11px ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace; }
  .number { font-weight: 650; text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .ink { fill: #e6ebf2; } .soft { fill: #a3afbf; } .layer { fill: #232a35; }
    .box { fill: #19212b; stroke: #3b4859; } .box.way { stroke: #4db6ac; }
    .badge, .head.way { fill: #4db6ac; } .number { fill: #10151c; }
    .arrow { stroke: #6b7888; } .arrow.way { stroke: #4db6ac; } .head { fill: #6b7888; }
  }
"""


@dataclass
class Place:
    """A box, or the lane of an arrow that passes a layer.

    Attributes:
        name: The package; of a lane, the arrow and the layer.
        width: Width.
        text: Lines of its description.
        folders: Lines with its sub-folders.
        left: x of its left side.
        top: y of its upper side.
        height: Height.
    """

    name: str
    width: float
    text: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left: float = 0
    top: float = 0
    height: float = 0

    @property
    def centre(self) -> float:
        """The x of its middle."""
        return self.left + self.width / 2


def draw() -> str:
    """Return the picture of the sources as they are now."""
    graph = package_graph()
    shown = [*_shown_imports(graph)]
    rows, routes = _rows(layers(), shown)
    _sort(rows, routes)
    height = _set_positions(rows)
    places = {place.name: place for row in rows for place in row}
    way = {*_way(graph)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + 64:.0f}" '
        f'role="img" aria-label="the packages of {PACKAGE} and their imports">',
        f"<style>{_STYLE}</style>",
        *map(_layer, rows),
        *_arrows(graph, routes, places, way),
        *(_box(places[name]) for name in sorted(graph)),
        *_legend(height),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _way(graph: nx.DiGraph[str]) -> Iterator[tuple[str, str]]:
    """Yield the import by which a step comes to each package: from the latest one before it."""
    for i, target in enumerate(WAY[1:], 1):
        yield next(
            (source, target) for source in WAY[i - 1 :: -1] if graph.has_edge(source, target)
        )


def _shown_imports(graph: nx.DiGraph[str]) -> Iterator[tuple[str, str]]:
    """Yield the imports that do not follow from others, and those on a step's way."""
    yield from sorted({*nx.transitive_reduction(graph).edges, *_way(graph)})


def _rows(
    levels: Sequence[Sequence[str]], shown: Sequence[tuple[str, str]]
) -> tuple[list[list[Place]], dict[tuple[str, str], list[str]]]:
    """Return the places of each layer, and the places that each arrow passes from end to end."""
    rows = [[_place(name) for name in level] for level in levels]
    level_of = {name: i for i, level in enumerate(levels) for name in level}
    routes = {}
    for source, target in shown:
        lanes = []
        for level in range(level_of[source] + 1, level_of[target]):
            lanes.append(Place(f"{source}-{target}-{level}", _LANE))
            rows[level].append(lanes[-1])
        routes[source, target] = [source, *(lane.name for lane in lanes), target]
    return rows, routes


def _place(name: str) -> Place:
    folder = ROOT / PACKAGE / name
    folders = [entry for entry in entries(folder) if entry.endswith("/")] if folder.is_dir() else []
    text = textwrap.wrap(summary(name).replace("`", ""), _LETTERS)
    return Place(name, _BOX, text, textwrap.wrap(" ".join(folders), _FOLDER_LETTERS))


def _sort(rows: list[list[Place]], routes: dict[tuple[str, str], list[str]]) -> None:
    """Sort each layer by the mean x of its neighbours, sweeping down and up, so that few cross."""
    neighbours: dict[str, list[str]] = {}
    for route in routes.values():
        for one, other in pairwise(route):
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    places = {place.name: place for row in rows for place in row}
    for sweep in range(_SWEEPS):
        _set_positions(rows)
        for row in rows if sweep % 2 else reversed(rows):
            means = {}
            for place in row:
                xs = [places[name].centre for name in neighbours.get(place.name, [])]
                means[place.name] = sum(xs) / len(xs) if xs else place.centre
            row.sort(key=lambda place: (means[place.name], place.name))
            _set_lefts(row)


def _set_positions(rows: list[list[Place]]) -> float:
    """Place all layers below one another; return the y below the last one."""
    top = float(_MARGIN)
    for row in rows:
        _set_lefts(row)
        height = max(34 + 15 * len(place.text) + 15 * len(place.folders) for place in row)
        for place in row:
            place.top, place.height = top, height
        top += height + _GAP_Y
    return top - _GAP_Y + _MARGIN


def _set_lefts(row: Sequence[Place]) -> None:
    """Place a layer from left to right, centred in the picture."""
    filled, gaps = sum(place.width for place in row), max(len(row) - 1, 1)
    gap = min(_GAP_X, (_WIDTH - 2 * _MARGIN - filled) / gaps)
    left = (_WIDTH - filled - gap * (len(row) - 1)) / 2
    for place in row:
        place.left = left
        left += place.width + gap


def _layer(row: Sequence[Place]) -> str:
    top, height = row[0].top - 9, row[0].height + 18
    return (
        f'<rect class="layer" x="0" y="{top:.1f}" width="{_WIDTH}" height="{height:.1f}" rx="8"/>'
    )


def _box(place: Place) -> str:
    x, y = place.left, place.top
    way = " way" if place.name in WAY else ""
    parts = [
        f'<rect class="box{way}" x="{x:.1f}" y="{y:.1f}" width="{place.width}" '
        f'height="{place.height:.1f}" rx="7"/>',
        f'<text class="name ink" x="{x + 12:.1f}" y="{y + 22:.1f}">{escape(place.name)}</text>',
    ]
    if way:
        parts.append(
            f'<circle class="badge" cx="{x + place.width - 16:.1f}" cy="{y + 17:.1f}" r="9.5"/>'
            f'<text class="number" x="{x + place.width - 16:.1f}" y="{y + 21:.1f}">'
            f"{WAY.index(place.name) + 1}</text>"
        )
    lines = [("soft", line) for line in place.text]
    lines += [("folders ink", line) for line in place.folders]
    for i, (css, line) in enumerate(lines):
        parts.append(
            f'<text class="{css}" x="{x + 12:.1f}" y="{y + 40 + 15 * i:.1f}">{escape(line)}</text>'
        )
    return "\n".join(parts)


def _arrows(
    graph: nx.DiGraph[str],
    routes: dict[tuple[str, str], list[str]],
    places: dict[str, Place],
    way: set[tuple[str, str]],
) -> Iterator[str]:
    """Yield the arrows, those on a step's way last; ends spread along the side of a box."""
    leaving = _ports(routes, places, end=0)
    entering = _ports(routes, places, end=-1)
    for edge in sorted(routes, key=lambda edge: (edge in way, edge)):
        source, *lanes, target = (places[name] for name in routes[edge])
        x, y = leaving[edge], source.top + source.height
        path, end = f"M{x:.1f},{y:.1f}", entering[edge]
        for lane in lanes:
            path += _curve(x, y, lane.centre, lane.top) + f" V{lane.top + lane.height:.1f}"
            x, y = lane.centre, lane.top + lane.height
        if source.top == target.top:  # neighbours on one layer: below both
            path += f" C{x:.1f},{y + 26:.1f} {end:.1f},{y + 26:.1f} {end:.1f},{y + 7:.1f}"
            head = f"M{end - 5:.1f},{y + 8:.1f} h10 l-5,-7 z"
        else:
            path += _curve(x, y, end, target.top - 7)
            head = f"M{end - 5:.1f},{target.top - 8:.1f} h10 l-5,7 z"
        css = " way" if edge in way else ""
        lines = graph.edges[edge]["lines"]
        width = next(width for limit, width in _THICKNESS if lines < limit)
        yield f'<path class="arrow{css}" stroke-width="{width}" d="{path}"/>'
        yield f'<path class="head{css}" d="{head}"/>'


def _ports(
    routes: dict[tuple[str, str], list[str]], places: dict[str, Place], *, end: int
) -> dict[tuple[str, str], float]:
    """Return the x at which each arrow leaves (`end` 0) or enters (`end` -1) its box."""
    by_box: dict[str, list[tuple[str, str]]] = {}
    for edge in sorted(routes):
        by_box.setdefault(edge[end], []).append(edge)
    found = {}
    for name, edges in by_box.items():
        edges.sort(key=lambda edge: (places[routes[edge][-2 if end else 1]].centre, edge))
        for i, edge in enumerate(edges, 1):
            found[edge] = places[name].left + places[name].width * i / (len(edges) + 1)
    return found


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    half = (y + to_y) / 2
    return f" C{x:.1f},{half:.1f} {to_x:.1f},{half:.1f} {to_x:.1f},{to_y:.1f}"


def _legend(top: float) -> Iterator[str]:
    for i, line in enumerate(
        (
            "Grey: imports, without those that follow from others. Thicker: more import lines.",
            "Green, numbered: the way of a step when it is captured.",
        )
    ):
        yield f'<text class="soft" x="{_MARGIN}" y="{top + 30 + 18 * i:.1f}">{escape(line)}</text>'


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
