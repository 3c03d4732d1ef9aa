"""Charts as SVG: live bytes along a step, and a timeline of measured calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from stepgraph.ir import readable
from stepgraph.profiling import Span
from stepgraph.report.palette import colour_of

WIDTH = 1000
LEFT, RIGHT = 8, WIDTH - 8
_MOST_SPANS = 4000


@dataclass(frozen=True)
class LiveBytes:
    """Bytes alive while one operator runs.

    Attributes:
        where: Name of the operator's typed node.
        operator: Name of the operator.
        kind: Kind of the typed node.
        bytes: Number of bytes.
    """

    where: str
    operator: str
    kind: str
    bytes: int


def draw_memory(live: Sequence[LiveBytes], before: Sequence[LiveBytes]) -> str:
    """Return a chart of the bytes alive along a step, with a mark at the peak.

    Args:
        live: One value for every operator, in program order.
        before: The same for the step before the passes, or empty if the passes changed nothing.
    """
    top, bottom = 34, 210
    highest = max((one.bytes for one in (*live, *before)), default=0)
    if not highest or not live:
        return ""

    def place(i: int, items: Sequence[LiveBytes]) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * i / max(len(items) - 1, 1)
        return x, bottom - (bottom - top) * items[i].bytes / highest

    def line(items: Sequence[LiveBytes]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(i, items) for i in range(len(items))))

    peak = max(range(len(live)), key=lambda i: live[i].bytes)
    x, y = place(peak, live)
    label = f"peak {readable(live[peak].bytes)} in {live[peak].where}"
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {bottom + 26}" role="img" aria-label="{escape(label)}">',
            f'<polygon class="area" points="{LEFT},{bottom} {line(live)} {RIGHT},{bottom}"/>',
            f'<polyline class="edge before" points="{line(before)}"/>' if before else "",
            f'<polyline class="edge" points="{line(live)}"/>',
            f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{bottom}" y2="{bottom}"/>',
            *_kinds_below(live, bottom + 6),
            f'<line class="peak" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{bottom}"/>',
            f'<circle class="peak" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
            f'<text class="peak-label" x="{x:.1f}" y="{y - 11:.1f}" '
            f'text-anchor="{_anchor(x)}">{escape(label)}</text>',
            f'<line class="cursor" x1="0" x2="0" y1="{top - 20}" y2="{bottom}"/></svg>',
        ]
    )


def _kinds_below(live: Sequence[LiveBytes], y: int) -> Iterator[str]:
    """Yield a strip with the colours of the operators' typed nodes."""
    step = (RIGHT - LEFT) / max(len(live), 1)
    x = float(LEFT)
    for where, group in groupby(live, key=lambda one: (one.where, one.kind)):
        width = step * len(list(group))
        yield (
            f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" height="12" '
            f'fill="{colour_of(where[1])}"><title>{escape(where[0])}</title></rect>'
        )
        x += width


def draw_timeline(spans: Sequence[tuple[str, Sequence[Span], Sequence[str]]]) -> str:
    """Return a drawing of measured calls as lanes with a common time axis.

    Args:
        spans: For every lane: its title, its spans in order, and for each span the key of its
            details or an empty string. Time zero of a lane is the start of its first span.
    """
    longest = max((own[-1].end_ns - own[0].start_ns for _, own, _ in spans if own), default=0)
    if not longest:
        return ""
    scale = (RIGHT - LEFT) / longest
    lane, gap = 30, 26
    height = len(spans) * (lane + gap) + 22
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline">']
    parts += _ticks(longest, scale, height - 18)
    for i, (title, own, keys) in enumerate(spans):
        y = i * (lane + gap) + 20
        parts.append(f'<text class="small" x="{LEFT}" y="{y - 6}">{escape(title)}</text>')
        parts.append(
            f'<rect class="lane" x="{LEFT}" y="{y}" width="{RIGHT - LEFT}" height="{lane}"/>'
        )
        if len(own) <= _MOST_SPANS:
            first = own[0].start_ns
            pairs = zip(own, keys, strict=True)
            parts += [_span(span, key, first, scale, y, lane) for span, key in pairs]
    return "\n".join([*parts, "</svg>"])


def _span(span: Span, key: str, first_ns: int, scale: float, y: int, lane: int) -> str:
    x = LEFT + (span.start_ns - first_ns) * scale
    width = max((span.end_ns - span.start_ns) * scale, 0.3)
    details = f' data-details="{escape(key)}"' if key else ""
    title = f"{span.name}: {(span.end_ns - span.start_ns) / 1e6:.3f} ms"
    name = _fitting(span, width)
    label = f'<text class="on" x="{x + 6:.1f}" y="{y + lane / 2 + 4}">{escape(name)}</text>'
    return (
        f'<rect class="span" style="--kind:{colour_of(span.kind)}"{details} x="{x:.2f}" y="{y}" '
        f'width="{width:.2f}" height="{lane}"><title>{escape(title)}</title></rect>'
        f"{label if name else ''}"
    )


def _fitting(span: Span, width: float) -> str:
    """Return the span's name, shortened to the width; for a whole call, its duration."""
    text = f"{(span.end_ns - span.start_ns) / 1e6:.2f} ms" if span.kind == "call" else span.name
    letters = int((width - 10) / 6.6)
    if len(text) <= letters:
        return text
    return text[: letters - 1] + "…" if letters > 4 else ""


def _ticks(longest_ns: int, scale: float, y: int) -> Iterator[str]:
    """Yield grid lines at round times."""
    step = 10 ** (len(str(longest_ns)) - 1)
    for divisor in (1, 2, 5):
        if longest_ns / (step / divisor) >= 4:
            step //= divisor
            break
    for time_ns in range(0, longest_ns + 1, max(step, 1)):
        x = LEFT + time_ns * scale
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{y}"/>'
        yield (
            f'<text class="small" x="{x + 3:.1f}" y="{y + 13}" '
            f'text-anchor="{"end" if x > RIGHT - 40 else "start"}">{time_ns / 1e6:g} ms</text>'
        )


def _anchor(x: float) -> str:
    if x < WIDTH * 0.2:
        return "start"
    return "end" if x > WIDTH * 0.8 else "middle"
