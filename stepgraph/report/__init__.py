"""Reports: an explanation as a page, and what differs between two of them."""

from stepgraph.report.page import page, to_html

__all__ = ["page", "to_html"]
