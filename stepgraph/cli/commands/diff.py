"""`stepgraph diff a.json b.json`: what differs between two explanations or two profiles."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from stepgraph.errors import ConfigurationError
from stepgraph.report import diff


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `diff` to the subcommands of a parser."""
    parser = commands.add_parser(
        "diff",
        help="compare two explanations, profiles or benches",
        description="Compare two files that --json of stepgraph explain, profile or bench has "
        "written. How often the step was called does not count.",
        epilog="exit codes: 0 nothing differs but times; 1 something does; 2 the files cannot be "
        "compared",
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if something differs that is no time.

    Raises:
        ConfigurationError: A file cannot be read, or holds something else.
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
        raise ConfigurationError(f"{path} is no JSON", found=str(error)) from error
