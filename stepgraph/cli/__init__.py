"""The command line: `stepgraph` or `python -m stepgraph.cli`."""

from stepgraph.cli.main import main

__all__ = ["main"]
