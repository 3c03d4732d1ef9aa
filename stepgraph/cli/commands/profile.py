"""`stepgraph profile script.py:step`: run a script, then measure every node of its step."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from stepgraph.cli.arguments import (
    add_observation,
    check_writable,
    count,
    show,
    write_json,
    writing,
)
from stepgraph.cli.commands.explain import heading
from stepgraph.cli.script.observe import measuring, observe


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `profile`."""
    parser = commands.add_parser(
        "profile",
        help="run a script, observe its training step, then measure every node of it",
        description="Run a script as __main__ with its own arguments, observe a training step of "
        "it for some calls, stop the script, and measure the step with the arguments of its "
        "latest call: eager beside compiled, and the time, bytes and operations of every node. "
        "State that the step writes is restored after each measured call.",
        epilog="exit codes: 0 the step is measured; 2 the script cannot be run, fails, or never "
        "calls the step, or the step is not captured",
    )
    add_observation(parser)
    parser.add_argument(
        "--steps",
        type=count,
        default=20,
        metavar="N",
        help="measure N calls of each way (default: 20)",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="also write a trace for Perfetto"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML report")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 2 if the script failed.

    Raises:
        ConfigurationError: The script cannot be run, the step is not captured, or a file cannot
            be written.
    """
    check_writable("--json", arguments.json)
    check_writable("--trace", arguments.trace)
    check_writable("--html", arguments.html)
    observed = observe(arguments.target, arguments.script_arguments, arguments.calls)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"{heading(observed)}\n")
    step, (args, kwargs) = observed.latest_step, observed.latest
    assert step is not None
    with measuring(observed):
        measured = step.profile(*args, **kwargs, steps=arguments.steps)
    show(console, measured)
    write_json("--json", arguments.json, measured.to_dict())
    if arguments.trace:
        with writing("--trace", arguments.trace):
            measured.to_chrome_trace(arguments.trace)
    if arguments.html:
        with writing("--html", arguments.html):
            step.explain().to_html(arguments.html, measured)
    return 2 if observed.failure is not None else 0
