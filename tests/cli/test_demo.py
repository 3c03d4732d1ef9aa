import sys

import matplotlib.image
import pytest
import torch

from stepgraph.cli import main
from stepgraph.cli.commands import demo
from stepgraph.cli.demo.picture import SIZE

QUICK = ("demo", "--epochs", "1", "--limit", "256")  # four steps: eager, captured, two replays


@pytest.fixture
def out(tmp_path):
    return tmp_path / "picture.png"


def test_the_demo_trains_explains_and_draws(out, capsys):
    code = main([*QUICK, "--out", str(out)])

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "The weights are bit-identical" in printed
    assert "captured whole" in printed
    assert "median of the rest" in printed
    width, height = SIZE
    assert matplotlib.image.imread(out).shape[:2] == (height, width)


def test_the_demo_leaves_threads_and_random_state_alone(out):
    before = torch.get_rng_state(), torch.get_num_threads()

    main([*QUICK, "--out", str(out)])

    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_a_weight_that_differs_in_one_bit_is_noticed(out, capsys, monkeypatch):
    report = demo._report

    def sabotage(console, *, eager, compiled, out):
        with torch.no_grad():
            bias = compiled.model.G[0].bias
            bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))
        return report(console, eager=eager, compiled=compiled, out=out)

    monkeypatch.setattr(demo, "_report", sabotage)

    code = main([*QUICK, "--out", str(out)])

    printed = capsys.readouterr().out
    assert code == 1
    assert "NOT IDENTICAL: 1 of 72 tensors differ" in printed
    assert "the first is G.0.bias" in printed
    assert "bit-identical" not in printed


def test_a_step_that_is_not_captured_is_no_success(out, capsys, monkeypatch):
    monkeypatch.setenv("STEPGRAPH_DISABLE", "1")

    code = main([*QUICK, "--out", str(out)])

    printed = capsys.readouterr().out
    assert code == 1
    assert "NOT CAPTURED" in printed
    assert "bit-identical" not in printed


@pytest.mark.parametrize(
    ("module", "package"),
    [("sklearn.datasets", "scikit-learn"), ("matplotlib.figure", "matplotlib")],
)
def test_a_missing_package_is_one_sentence(out, capsys, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)

    code = main([*QUICK, "--out", str(out)])

    printed = capsys.readouterr()
    assert code == 2
    assert printed.err == (
        f"stepgraph demo: {package} is not installed; `pip install {package}` gets it.\n"
    )
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_said_before_training(tmp_path, capsys):
    code = main([*QUICK, "--out", str(tmp_path / "nowhere" / "picture.png")])

    printed = capsys.readouterr()
    assert code == 2
    assert "the file cannot be written" in printed.err
    assert printed.out == ""


def test_too_few_steps_say_how_many_are_needed(out, capsys):
    code = main(["demo", "--epochs", "1", "--limit", "128", "--out", str(out)])

    assert code == 2
    assert "2 steps: 1 epochs of 128 images" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5"])
def test_a_count_that_is_none_is_refused_by_name(capsys, text):
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--epochs={text}"])

    assert caught.value.code == 2
    assert f"argument --epochs: {text!r}" in capsys.readouterr().err
