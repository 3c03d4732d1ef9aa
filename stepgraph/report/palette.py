"""A colour for every kind of node: the same in a terminal, on a page and in a timeline."""

from __future__ import annotations

from stepgraph.effects import Kind

COLOURS = {kind.value: kind.colour for kind in Kind} | {
    "compiled": "#2f9fd0",
    "host": "#5f6b7a",
    "call": "#5f6b7a",
}
"""By kind; `compiled` is code across kinds, `host` what a call takes beside its nodes."""

OTHER = "#8a94a3"


def colour_of(kind: str) -> str:
    """Return the colour of a kind, as `#rrggbb`."""
    return COLOURS.get(kind, OTHER)
