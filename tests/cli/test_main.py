import pytest

import stepgraph
from stepgraph.cli import main
from stepgraph.cli.commands import demo
from stepgraph.errors import StepgraphError


def test_help_names_every_command_and_exit_code(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])

    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert "demo" in printed
    assert "exit codes:" in printed


def test_version_is_the_package_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"stepgraph {stepgraph.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--dance"]])
def test_a_command_line_that_does_not_parse_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: stepgraph" in capsys.readouterr().err


def test_an_error_of_ours_is_a_message_without_a_traceback(capsys, monkeypatch):
    def fail(arguments):
        raise StepgraphError("it rains", hint="an umbrella")

    monkeypatch.setattr(demo, "run", fail)

    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "stepgraph demo: it rains\n  try    an umbrella\n"


def test_an_interrupt_is_no_traceback(monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)

    assert main(["demo"]) == 130
