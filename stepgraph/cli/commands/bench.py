"""`stepgraph bench script.py:step`: run a script, then time its step eagerly and compiled."""

from __future__ import annotations

import argparse

from rich.console import Console

from stepgraph.cli.arguments import add_observation, check_writable, count, write_json
from stepgraph.cli.commands.explain import heading
from stepgraph.cli.script.observe import measuring, observe
from stepgraph.profiling import compare

_BACKENDS = ("eager", "inductor")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `bench`."""
    parser = commands.add_parser(
        "bench",
        help="run a script, then time its training step eagerly and compiled by every backend",
        description="Run a script as __main__ with its own arguments, observe a training step of "
        "it for some calls, stop the script, and time whole calls with the arguments of the latest "
        "call: eagerly, and compiled by each backend, in turns. Other options of the script's "
        "compile() apply. State that the step writes is restored after each measured call.",
        epilog="exit codes: 0 all ways are measured; 1 a backend does not capture the step; 2 the "
        "script cannot be run, fails, or never calls the step, or no backend captures it",
    )
    add_observation(parser)
    parser.add_argument(
        "--steps",
        type=count,
        default=50,
        metavar="N",
        help="measure N calls of each way (default: 50)",
    )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        action="append",
        help="compile with this backend; may be given several times (default: all)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if a backend does not capture the step, or 2 if the script failed.

    Raises:
        ConfigurationError: The script cannot be run, no backend captures the step, or a file
            cannot be written.
    """
    check_writable("--json", arguments.json)
    observed = observe(arguments.target, arguments.script_arguments, arguments.calls)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"{heading(observed)}\n")
    step, (args, kwargs) = observed.latest_step, observed.latest
    assert step is not None
    backends = tuple(dict.fromkeys(arguments.backend or _BACKENDS))
    with measuring(observed):
        found = compare(step, args, kwargs, backends=backends, steps=arguments.steps)
    console.print(str(found))
    write_json("--json", arguments.json, found.to_dict())
    if observed.failure is not None:
        return 2
    return 0 if found.complete else 1
