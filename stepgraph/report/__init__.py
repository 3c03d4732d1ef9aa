"""Views of explanations, profiles and step graphs: HTML page, terminal, difference of two.

Files, in reading order:

    terminal.py  tables and colours in a terminal, by `rich`
    html/        an explanation as one HTML page
    diff.py      the differences between two explanations, profiles or benches
    palette.py   one colour for each kind of node
    status.py    captured, eager or not known yet: the colour of a verdict
"""

from stepgraph.report.diff import Difference, diff
from stepgraph.report.html import page, to_html
from stepgraph.report.terminal import to_rich

__all__ = ["Difference", "diff", "page", "to_html", "to_rich"]
