"""Two gloo processes on this machine train what one process trains on the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepgraph.train import checkpoint as files
from train.distributed_gan import EPOCHS

SCRIPT = Path(__file__).with_name("distributed_gan.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "STEPGRAPH_MAX_CAPTURE_FAILURES": "1"}
WINDOWS = 3 * EPOCHS
BATCHES = 5 * EPOCHS


def run(folder, *launcher):
    root = SCRIPT.parents[2]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder)],
        env={**os.environ, "PYTHONPATH": path, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and each of two ended with."""
    folder = tmp_path_factory.mktemp("distributed")
    run(folder)
    run(folder, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    load = lambda name: torch.load(folder / name)  # noqa: E731
    return {
        "one": load("result-1-0.pt"),
        "two": [load("result-2-0.pt"), load("result-2-1.pt")],
        "checkpoint": files.read(folder / "of-2.ckpt"),
    }


CASES = ("accumulate", "always", "automatic")


@pytest.mark.parametrize("case", CASES)
def test_the_processes_agree_bit_for_bit(results, case):
    left, right = (result[case]["weights"] for result in results["two"])

    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains_on_the_joint_batch(results, case):
    torch.testing.assert_close(results["two"][0][case]["weights"], results["one"][case]["weights"])
    assert results["two"][0][case]["global_step"] == results["one"][case]["global_step"] == WINDOWS


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("accumulate", 2 * WINDOWS),  # one for each optimizer, only where a window ends
        ("always", 2 * BATCHES),
        ("automatic", WINDOWS),
    ],
)
def test_gradients_are_reduced_as_often_as_promised(results, case, expected):
    assert [result[case]["reductions"] for result in results["two"]] == [expected, expected]
    assert results["one"][case]["reductions"] == 0


def test_metrics_are_reduced_over_processes(results):
    left, right = (result["accumulate"]["loss"] for result in results["two"])

    assert torch.equal(left, right)
    torch.testing.assert_close(left, results["one"]["accumulate"]["loss"])


@pytest.mark.parametrize("case", ["accumulate", "automatic"])
def test_a_step_that_reduces_says_why_it_is_eager(results, case):
    for result in results["two"]:
        assert result[case]["reasons"] == ["all-reduces gradients between processes"]


def test_a_checkpoint_has_the_random_state_of_every_process(results):
    assert len(results["checkpoint"]["random"]) == 2
