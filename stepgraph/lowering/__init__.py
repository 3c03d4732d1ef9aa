"""Lowering: from a step graph to a program."""

from stepgraph.lowering.emit import Emitted, emit, first_update, stealable
from stepgraph.lowering.sections import Section, sections, with_marks

__all__ = ["Emitted", "Section", "emit", "first_update", "sections", "stealable", "with_marks"]
