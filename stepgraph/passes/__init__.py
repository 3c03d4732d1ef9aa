"""The passes, one file each, and the pipeline that runs them."""

from stepgraph.passes.base import Pass
from stepgraph.passes.dead_code import DropUnusedNorm
from stepgraph.passes.pipeline import PassRecord, Pipeline
from stepgraph.passes.short_window import UpdateFromShortWindow

__all__ = [
    "DEFAULT",
    "DropUnusedNorm",
    "Pass",
    "PassRecord",
    "Pipeline",
    "UpdateFromShortWindow",
]

DEFAULT = Pipeline((DropUnusedNorm(),))
"""What every captured step goes through."""
