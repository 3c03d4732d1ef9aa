"""`stepgraph explain` runs a script as it would run, watches one step of it, and stops it."""

import json
import sys

import pytest

from stepgraph.cli import main

SCRIPT = """\
import sys
import torch
import stepgraph

model = torch.nn.Linear(2, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.1)


DECORATOR
def step(x):
    opt.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    opt.step()
    return loss


class Trainee:
    def train(self, x):
        return step(x)


if __name__ == "__main__":
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for index in range(calls):
        try:
            step(torch.ones(3, 2))
        except Exception:
            print("an exception that the script catches")
        print("called", index)
    print("the end")
"""


@pytest.fixture
def script(tmp_path):
    def write(source=SCRIPT, decorator=""):
        path = tmp_path / "train.py"
        path.write_text(source.replace("DECORATOR", decorator))
        return path

    return write


@pytest.mark.parametrize("decorator", ["", "@stepgraph.compile"], ids=["plain", "decorated"])
def test_a_step_is_observed_explained_and_stopped(script, capsys, decorator):
    path = script(decorator=decorator)

    code = main(["explain", f"{path}:step", "--calls", "4"])

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "called 2" in printed
    assert "called 3" not in printed  # the fourth call ends the script, whatever it catches
    assert "step: captured whole, 1 variant" in printed
    assert "SGD(opt)" in printed
    assert "model.weight.grad = ..." in printed  # the step graph, in the script's own words
    assert "train.py:13" in printed  # the line of loss.backward()


def test_options_of_the_script_are_kept_however_it_compiles(script, capsys):
    source = SCRIPT.replace(
        "class Trainee", "step = stepgraph.compile(step, accumulate=2)\n\nclass Trainee"
    )
    path = script(source)

    code = main(["explain", f"{path}:step", "--calls", "6"])

    assert code == 0
    assert "captured whole, 2 variants" in capsys.readouterr().out


def test_arguments_behind_dashes_are_the_scripts(script, capsys, tmp_path):
    out = tmp_path / "explanation.json"
    before = list(sys.argv)

    code = main(["explain", f"{script()}:step", "--json", str(out), "--", "3"])

    printed = capsys.readouterr().out
    assert code == 0
    assert "the end" in printed
    assert "3 calls observed" in printed
    assert json.loads(out.read_text())["calls"] == 3
    assert sys.argv == before
    assert sys.modules["__main__"].__name__ == "__main__"


METHOD = """\
import torch


class Model(torch.nn.Linear):
    def fit(self):
        opt = torch.optim.SGD(self.parameters(), lr=0.1)
        for _ in range(3):
            self.training_step(opt, torch.ones(3, 2))

    def training_step(self, opt, x):
        opt.zero_grad()
        loss = self(x).mean()
        if loss > 0:
            loss = loss * 2
        loss.backward()
        opt.step()


Model(2, 1).fit()
"""


def test_a_method_that_falls_back_is_explained_with_exit_code_1(script, capsys):
    path = script(METHOD)

    code = main(["explain", f"{path}:Model.training_step"])

    printed = capsys.readouterr().out
    assert code == 1
    assert "Model.training_step: runs eagerly" in printed
    assert "train.py:13" in printed


def test_a_step_that_is_never_called_is_a_sentence(script, capsys):
    path = script()

    code = main(["explain", f"{path}:Trainee.train"])

    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"stepgraph explain: {path} never called Trainee.train\n")


def test_a_script_that_fails_shows_its_own_traceback(script, capsys):
    path = script("def step():\n    pass\n\n\ndef work():\n    return 1 / 0\n\n\nwork()\n")

    code = main(["explain", f"{path}:step"])

    error = capsys.readouterr().err
    assert code == 2
    assert f'File "{path}", line 6, in work' in error
    assert "observe.py" not in error
    assert "failed before its first call of step" in error


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("train.py:stp", "try    {folder}/train.py:step"),
        ("train.py:train", "try    {folder}/train.py:Trainee.train"),
        ("none.py:step", "cannot be read: No such file or directory"),
        ("broken.py:step", "at     {folder}/broken.py:2"),
    ],
)
def test_a_target_that_is_not_there_is_a_sentence(script, tmp_path, capsys, target, message):
    script()
    (tmp_path / "broken.py").write_text("def step():\n    return (\n")

    code = main(["explain", f"{tmp_path}/{target}"])

    assert code == 2
    error = capsys.readouterr().err
    assert message.format(folder=tmp_path) in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "train.py"], "script.py:step"),
        (["explain", "train.py:step", "--calls", "0"], "whole number of at least 1"),
        (["explain", "train.py:step", "--epochs", "3"], "follow after --"),
        (["demo", "--", "--epochs"], "runs no script"),
    ],
)
def test_a_wrong_command_line_says_how_to_write_it(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said_before_the_script_runs(script, capsys, tmp_path):
    path = script("print('it runs')\ndef step():\n    pass\n")

    code = main(["explain", f"{path}:step", "--json", str(tmp_path / "nowhere" / "out.json")])

    printed = capsys.readouterr()
    assert code == 2
    assert "there is no folder" in printed.err
    assert "it runs" not in printed.out


def test_a_report_is_written_where_it_is_asked_for(script, tmp_path):
    out = tmp_path / "report.html"

    assert main(["explain", f"{script()}:step", "--calls", "3", "--html", str(out)]) == 0

    assert "captured whole" in out.read_text()


def test_a_file_that_turns_out_not_to_be_writable_is_a_sentence(script, tmp_path, capsys):
    out = tmp_path / ("a" * 300)  # longer than a name may be

    assert main(["explain", f"{script()}:step", "--calls", "1", "--html", str(out)]) == 2

    error = capsys.readouterr().err
    assert "the file cannot be written\n  at     --html" in error
    assert "Traceback" not in error
