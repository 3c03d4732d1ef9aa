"""The command line: `stepgraph` or `python -m stepgraph.cli`.

Files, in reading order:

    __main__.py   entry point of `python -m stepgraph.cli`
    main.py       parse the command line, run one subcommand, return its exit code
    commands/     one file per subcommand
    arguments.py  arguments, output and files that several commands share
    script/       run a user's script and observe one of its steps
    demo/         model, training loop and picture of `stepgraph demo`
"""

from stepgraph.cli.main import main

__all__ = ["main"]
