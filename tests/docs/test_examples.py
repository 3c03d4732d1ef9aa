"""Every example of the documentation runs in its quick mode and computes what eager computes."""

import difflib
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
CHECKED = {"plain", "compiled", "gan", "gpt", "accumulate", "trainer", "custom_pass"}

pytest.importorskip("sklearn")  # the digits; the extra `demo`


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs an example as a script and returns its names and its output."""

    def run_example(name):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick"])
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return names, capsys.readouterr().out

    return run_example


def test_every_example_is_tested_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == CHECKED


def test_every_example_is_on_their_page():
    page = (EXAMPLES / "index.md").read_text()

    for name in CHECKED:
        assert f"\n[{name}.py]({name}.py)\n" in page


def test_one_import_and_one_line_compile_a_plain_script():
    plain, compiled = (
        (EXAMPLES / f"{name}.py").read_text().splitlines() for name in ("plain", "compiled")
    )
    changes = [
        line[2:]
        for line in difflib.ndiff(plain[1:], compiled[1:])  # the docstrings say which is which
        if line[0] in "+-" and line[2:]
    ]

    assert changes == ["import stepgraph", "@stepgraph.compile"]


def test_the_compiled_script_has_the_bits_of_the_plain_one(run):
    plain, plainly_printed = run("plain")
    compiled, printed = run("compiled")

    assert compiled["training_step"].explain().captured
    assert printed == plainly_printed
    assert_same(compiled["model"], plain["model"])


def test_the_gan_trains_as_it_does_eagerly(run):
    names, printed = run("gan")

    assert "captured whole, 1 variant" in printed
    assert "DropDeadGradients" in printed
    assert_same(names["gan"], names["train"](1, compile=False))


def test_the_gpt_trains_as_it_does_eagerly(run):
    names, printed = run("gpt")
    training, losses = names["train"](20, 1, compiled=False)

    assert "captured whole, 1 variant" in printed
    assert names["losses"] == losses
    assert losses[-1] < losses[0] - 1
    assert_same(names["training"].model, training.model)


def test_the_options_do_what_one_would_write_by_hand(run):
    names, printed = run("accumulate")

    assert names["step"].explain().captured
    assert "12 calls, 3 updates; by hand the same bits: True" in printed


def test_a_resumed_training_has_the_bits_of_a_whole_one_and_of_an_eager_one(run, tmp_path):
    names, printed = run("trainer")
    eager = names["train"](tmp_path, epochs=2, stop_after=2, compile=False)

    assert all(step.explain().captured for step in names["whole"].steps)
    assert "stopped half-way and resumed, the same bits: True" in printed
    assert_same(names["whole"].module, eager.module)


def test_the_pass_merges_operators_and_changes_nothing(run):
    names, printed = run("custom_pass")
    (variant,) = names["step"].explain().variants

    assert any("MergeEqualOperators" in record.name for record in variant.passes if record.acted)
    assert "bit for bit: True" in printed


def assert_same(module, other):
    """Compare parameters and buffers bit by bit."""
    state, others = module.state_dict(), other.state_dict()
    assert state.keys() == others.keys()
    assert all(torch.equal(state[name], others[name]) for name in state)
