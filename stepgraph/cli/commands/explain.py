"""`stepgraph explain script.py:step`: run a script and print what was captured of its step."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from stepgraph.cli.arguments import add_observation, check_writable, show, write_json, writing
from stepgraph.cli.script.observe import Observed, observe
from stepgraph.compiler import CompiledStep


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `explain`."""
    parser = commands.add_parser(
        "explain",
        help="run a script, observe its training step, print what is captured and why not",
        description="Run a script as __main__ with its own arguments, observe a training step of "
        "it for some calls, stop the script, and print what was captured: variants, passes, "
        "reasons to run eagerly, and the step graphs. Until it is stopped the script runs as "
        "usual: it prints, trains and writes files.",
        epilog="exit codes: 0 the step is captured; 1 it is not; 2 the script cannot be run, "
        "fails, or never calls the step",
    )
    add_observation(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML report")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if the step was not captured, or 2 if the script failed.

    Raises:
        ConfigurationError: The script cannot be run, or a file cannot be written.
    """
    check_writable("--json", arguments.json)
    check_writable("--html", arguments.html)
    observed = observe(arguments.target, arguments.script_arguments, arguments.calls)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(heading(observed))
    for step in observed.steps:
        console.print()
        show(console, step.explain())
        if not console.is_terminal:
            for number, graph in enumerate(step.graphs):
                console.print(f"\nvariant {number}, {graph}")
    busiest = max(observed.steps, key=lambda step: step.explain().calls)
    write_json("--json", arguments.json, busiest.explain().to_dict())
    if arguments.html:
        with writing("--html", arguments.html):
            busiest.explain().to_html(arguments.html)
    return exit_code(observed, captured=all(map(_is_captured, observed.steps)))


def heading(observed: Observed) -> str:
    """Return the step and the number of its observed calls, in one line."""
    objects = f", of {len(observed.steps)} objects" if len(observed.steps) > 1 else ""
    plural = "" if observed.calls == 1 else "s"
    return f"{observed.target}: {observed.calls} call{plural} observed{objects}"


def exit_code(observed: Observed, *, captured: bool) -> int:
    """Return the exit code: 2 if the script failed, 1 if its step was not captured, else 0."""
    if observed.failure is not None:
        return 2
    return 0 if captured else 1


def _is_captured(step: CompiledStep) -> bool:
    return step.explain().captured
