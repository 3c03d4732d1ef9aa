"""Arguments, output and files that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stepgraph.cli.script.target import Target
from stepgraph.errors import ConfigurationError


def add_observation(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that runs a script and observes one of its steps."""
    parser.usage = f"{parser.prog} [options] SCRIPT.py:STEP [-- ARGUMENT ...]"
    parser.add_argument(
        "target",
        type=Target.parse,
        metavar="SCRIPT.py:STEP",
        help="a function of the script, or Class.method; decorated or not",
    )
    parser.add_argument(
        "--calls",
        type=count,
        default=20,
        metavar="N",
        help="observe N calls of the step, then stop the script (default: 20)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write the result as JSON, for stepgraph diff",
    )
    parser.set_defaults(takes_arguments=True)


def count(text: str) -> int:
    """Parse a whole number of at least 1; argparse adds the name of the option to the error."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def show(console: Console, result: Any) -> None:
    """Print an explanation or a profile: with colours in a terminal, else as plain text."""
    if console.is_terminal:
        console.print(result, soft_wrap=False)
    else:
        console.print(str(result))


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first `--` and those after it."""
    words = list(argv)
    if "--" not in words:
        return words, []
    index = words.index("--")
    return words[:index], words[index + 1 :]


def check_writable(option: str, out: Path | None) -> None:
    """Check that a file can be written, before the script runs.

    Raises:
        ConfigurationError: Its folder does not exist, or the path is a folder.
    """
    if out is None:
        return
    if not os.path.isdir(out.parent):
        raise _unwritable(option, f"there is no folder {out.parent}")
    if os.path.isdir(out):  # unlike Path.is_dir, no OSError for a name that is too long
        raise _unwritable(option, f"{out} is a folder")


@contextlib.contextmanager
def writing(option: str, out: Path) -> Iterator[None]:
    """Scope that turns an `OSError` into an error that names the option.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(option, f"{out}: {error.strerror}") from error


def write_json(option: str, out: Path | None, value: Any) -> None:
    """Write `value` as JSON to the file of an option, if the option is given.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    if out is not None:
        with writing(option, out):
            out.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _unwritable(option: str, found: str) -> ConfigurationError:
    return ConfigurationError(
        "the file cannot be written",
        at=option,
        found=found,
        hint="a file in a folder that exists and is writable",
    )
