"""Every kernel compiles for GPUs that are not here, without spills, with 128-bit accesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepgraph_kernels.catalogue import VARIANTS
from stepgraph_kernels.layouts import LAYOUTS

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
FACTORED = [
    f"{launch} {shape}"
    for launch in ("sums", "fold", "size", "apply")
    for shape in ("matrix", "vector")  # and, with every layout, odd and small matrices
]
HEAVY = ("amsgrad", "nadam", "nadam decoupled", "centered momentum")
KERNELS = Path(__file__).parents[2] / "kernels"


def compiled(*arguments):
    """One process without the interpreter compiles them all."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS)
    command = [sys.executable, "-m", "stepgraph_kernels.ahead_of_time", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# a compilation for one target takes half a minute: the others are left to `make test-slow`
@pytest.fixture(
    scope="module",
    params=[t if t == "sm_90" else pytest.param(t, marks=pytest.mark.slow) for t in TARGETS],
)
def reports(request):
    return compiled("--targets", request.param)


@pytest.fixture
def sweeps(reports):
    return [report for report in reports if report["kernel"].startswith("sweep")]


# 64 registers leave four programs of 256 threads on a multiprocessor, 80 leave three
FOUR_PROGRAMS, THREE_PROGRAMS = 64, 80


def assert_lean(report, registers):
    assert report["spilled_bytes"] == 0, report
    limit = registers if report["target"].startswith("sm") else 128
    assert report["registers"] <= limit, report
    assert report["shared_bytes"] == 0, report


def test_every_variant_is_compiled_for_the_target(reports, request):
    target = request.node.callspec.params["reports"]
    found = {report["kernel"] for report in reports}

    swept = [v.name for v in VARIANTS if not v.family.rule(v.group()).factored]
    assert {report["target"] for report in reports} == {target}
    assert found >= {f"sweep {name}" for name in swept}
    assert found >= {f"adafactor {kernel}" for kernel in FACTORED}
    assert found >= {f"sweep muon {part}" for part in ("gather", "apply")}


def test_sweeps_spill_nothing_and_use_no_shared_memory(sweeps):
    for report in sweeps:
        assert_lean(report, THREE_PROGRAMS if report["kernel"].endswith(HEAVY) else FOUR_PROGRAMS)


def test_sweeps_move_128_bits_at_a_time(sweeps):
    for report in sweeps:
        assert report["wide_loads"] > 0, report
        assert report["wide_stores"] > 0, report


def test_float32_sweeps_have_two_wide_accesses_for_each_stream(sweeps):
    """Eight elements a thread: two 128-bit accesses for p, g and each state.

    After a measuring launch the states are only read, and the gradient not at all.
    """
    for report in sweeps:
        if "muon" in report["kernel"]:
            continue  # bf16 on one side, whatever the layout is called
        if report["layout"] == "float32" and report["target"].startswith("sm"):
            variant = next(v for v in VARIANTS if report["kernel"] == f"sweep {v.name}")
            rule = variant.family.rule(variant.group())
            reads = (rule.measure is None) + 1 + len(rule.states)
            writes = 1 + (len(rule.states) if rule.measure is None else 0)
            assert report["wide_loads"] == 2 * reads, report
            assert report["wide_stores"] == 2 * writes, report


def test_first_launches_spill_nothing_and_read_128_bits_at_a_time(reports):
    launches = [r for r in reports if r["kernel"].startswith("decide")]

    assert launches
    for report in launches:
        assert report["spilled_bytes"] == 0, report
        assert report["registers"] <= 80, report
    reading = [r for r in launches if "Adafactor" not in r["kernel"]]  # it gets the sums
    assert all(r["wide_loads"] for r in reading if r["shared_bytes"] > 1000)


def test_measuring_launches_spill_nothing_and_move_128_bits_at_a_time(reports):
    launches = [r for r in reports if r["kernel"].startswith("measure")]

    assert launches
    for report in launches:
        assert report["spilled_bytes"] == 0, report
        assert report["registers"] <= 80, report
        assert report["wide_loads"] >= 4, report
        assert report["wide_stores"] >= 2, report


SPILLED = {("sm_80", "adafactor apply odd matrix", "bf16 weights, float32 master"): 8}
"""Where the assembler keeps one more program in flight at the price of a spilled address."""


def assert_factored(report):
    """Gradients in 128 bits where rows are aligned: once, with the parameter, and to update it."""
    spilled = SPILLED.get((report["target"], report["kernel"], report["layout"]), 0)
    assert report["spilled_bytes"] == spilled, report
    heavy = "small" in report["kernel"]  # an address for each element
    assert report["registers"] <= (96 if heavy else THREE_PROGRAMS), report
    launch, shape = report["kernel"].split(maxsplit=2)[1:]
    if shape in ("matrix", "vector") and launch != "fold":
        streams = {"sums": 1, "size": 2, "apply": 2}[launch]
        wide = report["wide_loads"] + report["middle_loads"]  # 16 bits beside 32
        assert wide >= streams, report
        assert report["wide_stores"] >= (launch == "apply"), report


def test_factored_launches_spill_nothing_and_move_128_bits_at_a_time(reports):
    launches = [r for r in reports if r["kernel"].startswith("adafactor")]

    for report in launches:
        assert_factored(report)
    plain = {
        report["target"]: (report["wide_loads"], report["wide_stores"])
        for report in launches
        if (report["layout"], report["kernel"]) == ("float32", "adafactor apply matrix")
    }
    assert plain.get("sm_90", (4, 2)) == (4, 2)  # eight elements of p and g


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_layout_of_every_kernel_is_lean(target):
    everything = compiled("--all-layouts", "--targets", target)

    sweeps = [r for r in everything if r["kernel"].startswith("sweep")]
    assert {r["layout"] for r in sweeps} == {layout.name for layout in LAYOUTS}
    for report in sweeps:
        assert_lean(report, THREE_PROGRAMS)
        assert report["wide_loads"] > 0, report
    assert {"adafactor size small matrices", "adafactor apply odd matrix"} <= {
        report["kernel"] for report in everything
    }
    for report in everything:
        if report["kernel"].startswith("adafactor"):
            assert_factored(report)
