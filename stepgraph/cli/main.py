"""Parse the command line, run one subcommand, print its error, return its exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from stepgraph import __version__
from stepgraph.cli.arguments import split_at_dashes
from stepgraph.cli.commands import bench, demo, diff, doctor, explain, profile
from stepgraph.errors import StepgraphError

_EXIT_CODES = """\
exit codes:
  0  done
  1  a check of the command failed; the output names it
  2  the command could not run: wrong arguments, or something is missing
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a `stepgraph` command.

    Args:
        argv: The arguments after the program's name; those of the process by default.

    Returns:
        The exit code; see `stepgraph --help`.

    Raises:
        SystemExit: After `--help` and `--version`, and with code 2 for wrong arguments.
    """
    own, of_script = split_at_dashes(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(own)
    if unknown:
        hint = "; arguments of the script follow after --" if arguments.takes_arguments else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if of_script and not arguments.takes_arguments:
        parser.error(
            f"{arguments.command} runs no script, so it takes no {' '.join(of_script)} after --"
        )
    arguments.script_arguments = of_script
    try:
        return int(arguments.run(arguments))
    except StepgraphError as error:
        stderr = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        stderr.print(f"stepgraph {arguments.command}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stepgraph",
        description="Compile a whole PyTorch training step.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stepgraph {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser.set_defaults(takes_arguments=False)
    for command in (demo, doctor, explain, profile, bench, diff):
        command.add_command(commands)
    return parser
