"""stepgraph: compile a whole PyTorch training step."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
