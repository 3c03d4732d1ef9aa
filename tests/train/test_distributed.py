"""Two gloo processes on this machine train what one process trains on the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepgraph.train.checkpoints import files
from train import distributed_gan
from train.distributed_gan import EPOCHS

SCRIPT = Path(distributed_gan.__file__)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "STEPGRAPH_MAX_CAPTURE_FAILURES": "1"}
WINDOWS = 3 * EPOCHS
BATCHES = 5 * EPOCHS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and each of two ended with."""
    folder = tmp_path_factory.mktemp("distributed")
    root = SCRIPT.parents[2]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder)],
        env={**os.environ, "PYTHONPATH": path, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    two = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {"one": distributed_gan.main(folder), "two": two, "folder": folder}


CASES = ("accumulate", "always", "automatic")


@pytest.mark.parametrize("case", [*CASES, "normalised", "resumed"])
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


def test_a_training_is_resumed_in_the_middle_of_a_window(results):
    """Each process goes on with its own gradients, running means and random numbers."""
    for result in results["two"]:
        left, right = (result[case]["weights"] for case in ("normalised", "resumed"))
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert result["normalised"]["rates"] == result["resumed"]["rates"]


def test_decisions_by_a_metric_are_those_of_the_first_process(results):
    """Of its own the second would halve its rate in other epochs, and save other files."""
    left, right = (result["normalised"]["rates"] for result in results["two"])

    assert left == right
    assert len(list((results["folder"] / "best").iterdir())) == 1


def test_a_checkpoint_has_the_state_of_every_process(results):
    saved = files.read(results["folder"] / "middle")

    left, right = (process["gradients"] for process in saved["processes"])
    assert left.keys() == right.keys() != set()
    assert not torch.equal(left["model.0.weight"], right["model.0.weight"])
