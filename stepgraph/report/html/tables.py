"""HTML tables with numbers, names and bars, which a script can sort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from stepgraph.report.palette import colour_of


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Text of the cell.
        value: Sort key; None for text.
        css: CSS classes.
    """

    text: str
    value: float | None = None
    css: str = ""


@dataclass(frozen=True)
class Bar:
    """A cell with a horizontal bar.

    Attributes:
        share: Length of the bar, from 0 to 1.
        kind: Kind whose colour the bar has.
    """

    share: float
    kind: str


def number(text: str, value: float | None) -> Cell:
    """Return a right-aligned cell with a number."""
    return Cell(text, 0.0 if value is None else value, "number")


def name(text: str) -> Cell:
    """Return a cell with an identifier, in a monospaced font."""
    return Cell(text, None, "name")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell | Bar | str]],
    *,
    keys: Sequence[str] = (),
    css: Sequence[str] = (),
    sortable: bool = False,
) -> str:
    """Return a table that scrolls horizontally, or an empty string without rows.

    Args:
        head: Titles of the columns.
        rows: Cells of each row.
        keys: Key of the details of each row, or empty.
        css: CSS classes of each row, or empty.
        sortable: Whether a click on a title sorts the rows.
    """
    lines = list(rows)
    if not lines:
        return ""
    sort = ' data-sort="1"' if sortable else ""
    numeric = [isinstance(cell, Cell) and "number" in cell.css for cell in lines[0]]
    titles = "".join(
        f"<th{sort if title else ''}{' class=number' if right else ''}>{escape(title)}</th>"
        for title, right in zip(head, numeric, strict=True)
    )
    body = "".join(
        f"<tr{_attributes(keys, css, i)}>{''.join(map(_cell, line))}</tr>"
        for i, line in enumerate(lines)
    )
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _attributes(keys: Sequence[str], css: Sequence[str], i: int) -> str:
    key = f' data-details="{escape(keys[i])}"' if i < len(keys) and keys[i] else ""
    own = f' class="{escape(css[i])}"' if i < len(css) and css[i] else ""
    return key + own


def _cell(cell: Cell | Bar | str) -> str:
    if isinstance(cell, Bar):
        width = max(min(cell.share, 1.0), 0.0) * 100
        return (
            f'<td class="barcell"><span class="bar" style="--kind:{colour_of(cell.kind)};'
            f'width:{width:.1f}%"></span></td>'
        )
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    css = f' class="{escape(cell.css)}"' if cell.css else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{css}{value}>{escape(cell.text)}</td>"
