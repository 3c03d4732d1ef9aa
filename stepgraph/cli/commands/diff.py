"""`stepgraph diff a.json b.json`: differences between two explanations, profiles or benches."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from stepgraph.errors import ConfigurationError
from stepgraph.report import diff


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `diff`."""
    parser = commands.add_parser(
        "diff",
        help="compare two explanations, profiles or benches",
        description="Compare two files written by --json of stepgraph explain, profile or "
        "bench. Numbers of calls are not compared.",
        epilog="exit codes: 0 only times differ; 1 other values differ; 2 the files cannot be "
        "compared",
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if values other than times differ.

    Raises:
        ConfigurationError: A file cannot be read, or is not written by `--json`.
    """
    found = diff(_read(arguments.before), _read(arguments.after))
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(str(found))
    return 1 if found.facts else 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON", found=str(error)) from error
