"""`stepgraph bench` times whole calls of a script's step, eagerly and compiled, in turns."""

import json

import pytest

from stepgraph.cli import main
from stepgraph.report import diff

SCRIPT = """\
import torch

model = torch.nn.Linear(2, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
calls = []


def step(x):
    BODY
    opt.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    opt.step()


for _ in range(100):
    step(torch.ones(3, 2))
"""


@pytest.fixture
def script(tmp_path):
    def write(body="pass"):
        path = tmp_path / "train.py"
        path.write_text(SCRIPT.replace("BODY", body))
        return path

    return write


def bench(script, *options):
    return main(["bench", f"{script}:step", "--calls", "3", "--steps", "2", *options])


def test_a_step_is_timed_in_every_way_it_is_asked_for(script, tmp_path, capsys):
    out = tmp_path / "bench.json"

    code = bench(script(), "--backend", "eager", "--json", str(out))

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "medians of 2 calls each, in turns" in printed
    found = json.loads(out.read_text())
    assert [way["name"] for way in found["ways"]] == ["eager", "compiled, eager"]
    assert all(way["time"]["calls"] == 2 for way in found["ways"])
    assert "1.00 x" in printed
    assert not diff(found, found).facts


@pytest.mark.slow
def test_every_backend_is_timed_unless_one_is_named(script, capsys):
    code = bench(script())

    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "compiled, inductor" in printed


def test_a_step_that_nothing_captures_is_a_sentence(script, capsys):
    code = bench(script("assert model(x).sum() < 1e9"), "--backend", "eager")

    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("stepgraph bench: step is not captured by any backend\n")
    assert "train.py:9" in error
    assert "Traceback" not in error


def test_a_step_that_fails_when_it_is_called_again_is_a_sentence(script, capsys):
    code = bench(script("calls.append(1); assert len(calls) < 4, 'no more'"), "--backend", "eager")

    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("stepgraph bench: step failed when it was called again")
    assert "train.py:9\n" in error
    assert "AssertionError: no more" in error
    assert "Traceback" not in error
