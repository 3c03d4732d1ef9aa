"""`make gpu` itself: everything but the GPU, in the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import correctness
from benchmarks.gpu.machine import result_path
from benchmarks.gpu.tails import TAILS, Model, ours, theirs, torch_optimizer
from support.kernel_operands import INTERPRETER

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CHECKED = ("sgd", "adafactor")


@pytest.mark.parametrize("tail", TAILS)
def test_all_implementations_of_a_tail_do_the_same_work(tail):
    results = []
    for make in (
        lambda m: ours(m, tail, INTERPRETER),
        lambda m: theirs(m, tail, torch_optimizer(m, "fused")),
        lambda m: theirs(m, tail, torch_optimizer(m, "foreach")),
    ):
        torch.manual_seed(0)
        model = Model.of(300, 3, CPU)
        make(model)()
        results.append(model)

    first = results[0]
    for other in results[1:]:
        for name in ("params", "averages"):
            torch.testing.assert_close(getattr(first, name), getattr(other, name))
        if tail == TAILS[3]:
            torch.testing.assert_close(first.shadows, other.shadows, rtol=2**-7, atol=0)
            assert not any(g.any() for g in first.grads + other.grads)


@pytest.mark.slow
def test_the_suite_runs_and_writes_its_results(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--only", *CHECKED]

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = tmp_path.rglob("*.json")
    written = json.loads(path.read_text())
    assert written["machine"]["device"] == "triton interpreter"
    assert all(check["ok"] for check in written["checks"])
    names = {check["check"].split(":")[0] for check in written["checks"]}
    assert names == {*CHECKED, "muon"}
    assert {row["tail"] for row in written["tails"]} == set(TAILS)
    assert {row["implementation"] for row in written["tails"]} == {
        "ours",
        "torch fused",
        "torch foreach",
        "torch compiled",
    }
    assert [row["kernel"] for row in written["catalogue"]] == list(CHECKED)
    rows = written["tails"] + written["catalogue"] + written["candidates"]
    assert not [row for row in rows if "gbps" not in row]


def test_a_wrong_kernel_fails_the_suite(monkeypatch):
    monkeypatch.setattr(correctness, "worst_difference", lambda *_: {"param": 1.5, "grad": 0.1})

    result = next(correctness.checks_of("sgd", CPU, INTERPRETER))

    assert result["ok"] is False
    assert result["wrong"] == "error over tolerance: {'param': 1.5}"


def test_an_exception_in_a_check_is_a_failed_check():
    result = correctness._guarded("it", lambda: 1 / 0)

    assert result == {"check": "it", "ok": False, "wrong": "ZeroDivisionError: division by zero"}


def test_a_check_that_kills_its_process_is_a_failed_check():
    (result,) = correctness.checks(CPU, ["no such kernel"], workers=1)

    assert result["ok"] is False
    assert result["check"] == "no such kernel: all"
    assert "StopIteration" in result["wrong"]


def test_results_lie_by_gpu_date_and_commit():
    machine = {"device": "NVIDIA H100 80GB", "date": "2026-01-02T03:04:05", "commit": "abc1234"}

    path = result_path(Path("results"), machine)

    assert path == Path("results/nvidia-h100-80gb/2026-01-02-abc1234.json")
