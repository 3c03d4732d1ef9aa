"""Arguments that several commands take."""

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
    """Add what a command needs that runs a script and observes a step of it."""
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
        "--json", type=Path, metavar="FILE", help="also write it as JSON, for stepgraph diff"
    )
    parser.set_defaults(takes_arguments=True)


def count(text: str) -> int:
    """Parse a whole number of at least 1; argparse names the option in its message."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def show(console: Console, thing: Any) -> None:
    """Print an explanation or a profile: in colours in a terminal, as plain text elsewhere."""
    if console.is_terminal:
        console.print(thing, soft_wrap=False)
    else:
        console.print(str(thing))


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments ahead of `--` and those behind it."""
    words = list(argv)
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def check_writable(option: str, out: Path | None) -> None:
    """Refuse a file that cannot be written, before a script runs rather than after.

    Raises:
        ConfigurationError: There is no such folder, or it is one.
    """
    if out is None:
        return
    if not os.path.isdir(out.parent):
        raise _unwritable(option, f"there is no folder {out.parent}")
    if os.path.isdir(out):  # unlike the method, False for a name that is none
        raise _unwritable(option, f"{out} is a folder")


@contextlib.contextmanager
def writing(option: str, out: Path) -> Iterator[None]:
    """Scope in which the file that an option names is written.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(option, f"{out}: {error.strerror}") from error


def write_json(option: str, out: Path | None, value: Any) -> None:
    """Write the file that an option names, if it is given.

    Raises:
        ConfigurationError: It cannot be written.
    """
    if out is not None:
        with writing(option, out):
            out.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _unwritable(option: str, found: str) -> ConfigurationError:
    return ConfigurationError(
        "the file cannot be written", at=option, found=found, hint="a file in a folder of yours"
    )
