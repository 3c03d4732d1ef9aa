"""The result of `explain()`: a description of a compiled step, as data and as text.

Files, in reading order:

    reports.py      variants, optimizers, regions and fallbacks as data
    advice.py       changes with which a step would run faster or use less memory
    text.py         an explanation as text
    explanation.py  `Explanation`
    build.py        makes an explanation from the state of a compiled step
"""

from stepgraph.compiler.explain.advice import Advice
from stepgraph.compiler.explain.build import explain
from stepgraph.compiler.explain.explanation import Explanation
from stepgraph.compiler.explain.reports import (
    FallbackReport,
    OptimizerReport,
    RegionReport,
    VariantReport,
    count_of,
)
from stepgraph.compiler.explain.text import optimizer_lines, pass_differences, variant_lines

__all__ = [
    "Advice",
    "Explanation",
    "FallbackReport",
    "OptimizerReport",
    "RegionReport",
    "VariantReport",
    "count_of",
    "explain",
    "optimizer_lines",
    "pass_differences",
    "variant_lines",
]
