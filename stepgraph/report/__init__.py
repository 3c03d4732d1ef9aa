"""Reports: an explanation as a page, and what differs between two of them."""

from stepgraph.report.diff import Difference, diff
from stepgraph.report.page import page, to_html

__all__ = ["Difference", "diff", "page", "to_html"]
