"""Reports: an explanation as a page, and what differs between two of them."""

from stepgraph.report.diff import Difference, diff
from stepgraph.report.html import page, to_html
from stepgraph.report.terminal import to_rich

__all__ = ["Difference", "diff", "page", "to_html", "to_rich"]
