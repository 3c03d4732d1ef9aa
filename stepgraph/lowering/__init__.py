"""Lowering: from a step graph to a program."""

from stepgraph.lowering.emit import Emitted, emit, first_update

__all__ = ["Emitted", "emit", "first_update"]
