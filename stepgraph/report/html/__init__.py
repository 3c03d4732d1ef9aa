"""An explanation as one HTML page.

Files, in reading order:

    page.py             the page: summary, fallbacks, advice, and the sections below
    variant_section.py  a variant: its step graph, memory, passes, optimizers, regions
    profile_section.py  a profile: timeline, table of nodes, table of operators
    boxes.py            a step graph as boxes in layers and the arrows between them
    graph_svg.py        boxes and arrows as SVG
    charts.py           memory along a step, and a timeline of calls, as SVG
    details.py          what a click on a box, a row or a span shows
    figure.py           the frame around a drawing that can be zoomed
    tables.py           HTML tables
    assets/             the stylesheet and the script of the page
"""

from stepgraph.report.html.page import page, to_html

__all__ = ["page", "to_html"]
