"""Run the suite, print its tables and write them as JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import copy_gbps, milliseconds
from benchmarks.gpu.correctness import MUON_NAME, checks, tuning_for
from benchmarks.gpu.machine import ROOT, header, result_path
from benchmarks.gpu.tails import (
    BYTES_PER_ELEMENT,
    TAILS,
    Model,
    captured,
    clipped_step,
    ours,
    theirs,
    torch_optimizer,
)
from stepgraph_kernels.catalogue import VARIANTS, Variant
from stepgraph_kernels.spec import Tuning

SIZES = (124_000_000, 10_000_000, 1_000_000_000)  # the most telling first: time may run out
TENSORS = (148, 16, 1024)
COMPILED = ((124_000_000, 148), (10_000_000, 16))  # compiling a thousand tensors takes minutes
BYTES_NEEDED_PER_ELEMENT = 48  # parameters, gradients, states, shadow, average, temporaries
SECONDS_FOR_STEPS, SECONDS_FOR_TESTS = 120, 100
CANDIDATES: tuple[dict[str, Any], ...] = (
    {},
    {"chunk": 8192},
    {"chunk": 16384},
    {"chunk": 32768},
    {"threads": 128},
    {"threads": 512},
    {"block": 1024},
    {"block": 4096},
    {"narrow_hint": 16},
    {"eviction": "evict_first"},
    {"reduce_threads": 256},
)


@dataclass(frozen=True)
class Plan:
    """How much of the suite to run, and on what."""

    device: torch.device
    sizes: Sequence[int]
    tensors: Sequence[int]
    compiled: Sequence[tuple[int, int]]
    variants: Sequence[Variant]
    candidates: Sequence[dict[str, Any]]
    tuning: Tuning
    repeats: int
    warmup: int
    deadline: float
    workers: int

    def late(self) -> bool:
        """Whether the time for the suite is over."""
        return time.monotonic() > self.deadline


def measurements(plan: Plan, roof_gbps: float) -> Iterator[dict[str, object]]:
    """Time every implementation of every tail, side by side on the same operands."""
    for elements in plan.sizes:
        for tensors in plan.tensors:
            case = {"elements": elements, "tensors": tensors}
            reason = _unfit(plan, elements)
            if reason:
                yield {**case, "skipped": reason}
                continue
            model = Model.of(elements, tensors, plan.device)
            for name in _implementations(plan, case):
                yield from _tails(plan, model, name, case, roof_gbps)
                _free(plan.device)
            del model
            _free(plan.device)


def _implementations(plan: Plan, case: dict[str, int]) -> Iterator[str]:
    yield "ours"
    if plan.device.type == "cuda":
        yield "ours, CUDA graph"
    yield "torch fused"
    yield "torch foreach"
    if (case["elements"], case["tensors"]) in plan.compiled:
        yield "torch compiled"


def _tails(
    plan: Plan, model: Model, name: str, case: dict[str, int], roof_gbps: float
) -> Iterator[dict[str, object]]:
    """Every tail by one implementation, with one optimizer: a compiled one is compiled once."""
    optimizer = None if name.startswith("ours") else torch_optimizer(model, name.split()[1])
    for tail in TAILS:
        row = {**case, "tail": tail, "implementation": name}
        if plan.late():
            yield {**row, "skipped": "out of time"}
            continue

        def make(tail: str = tail) -> Callable[[], object]:
            if optimizer is not None:
                return theirs(model, tail, optimizer)
            run = ours(model, tail, plan.tuning)
            return captured(run) if name.endswith("graph") else run

        yield {**row, **_timed(plan, make, model.elements * BYTES_PER_ELEMENT[tail], roof_gbps)}


def candidates(plan: Plan, roof_gbps: float) -> Iterator[dict[str, object]]:
    """Time the open choices on one model, for float32 and for bf16 beside a master copy."""
    elements, tensors = plan.sizes[0], plan.tensors[0]
    reason = _unfit(plan, elements)
    if reason:
        yield {"candidate": "all", "skipped": reason}
        return
    model = Model.of(elements, tensors, plan.device)
    for low_precision in (False, True):
        bytes_each = 30 if low_precision else BYTES_PER_ELEMENT[TAILS[1]]
        for change in plan.candidates:
            tuning = replace(plan.tuning, **change)
            row = {"candidate": change or "default", "bf16": low_precision}
            if plan.late():
                yield {**row, "skipped": "out of time"}
                continue
            run = ours(model, TAILS[1], tuning, low_precision=low_precision)
            yield {**row, **_timed(plan, partial(_same, run), elements * bytes_each, roof_gbps)}


def catalogue(plan: Plan, roof_gbps: float) -> Iterator[dict[str, object]]:
    """Time clip + step of every kernel, in float32: the numbers of the catalogue."""
    elements, tensors = plan.sizes[0], plan.tensors[0]
    columns = 1024 if plan.device.type == "cuda" else 40
    shapes = [(elements // tensors // columns, columns)] * tensors
    for variant in plan.variants:
        row: dict[str, object] = {"kernel": variant.name, "elements": elements, "tensors": tensors}
        if reason := _unfit(plan, elements):
            yield {**row, "skipped": reason}
            continue
        run, moved = clipped_step(variant, shapes, plan.tuning, plan.device)
        yield {**row, "bytes": moved, **_timed(plan, partial(_same, run), moved, roof_gbps)}
        del run
        _free(plan.device)


def _same(run: Callable[[], object]) -> Callable[[], object]:
    return run


def _timed(
    plan: Plan, make: Callable[[], Callable[[], object]], total_bytes: int, roof_gbps: float
) -> dict[str, object]:
    try:
        took = milliseconds(make(), plan.device, warmup=plan.warmup, repeats=plan.repeats)
    except Exception as error:  # one implementation that fails must not hide the others
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    gbps = total_bytes / took["median_ms"] / 1e6
    return {**took, "gbps": round(gbps, 1), "fraction_of_copy": round(gbps / roof_gbps, 4)}


def _unfit(plan: Plan, elements: int) -> str:
    if plan.late():
        return "out of time"
    if plan.device.type != "cuda":
        return ""
    free = torch.cuda.mem_get_info(plan.device)[0]
    needed = BYTES_NEEDED_PER_ELEMENT * elements
    return f"needs {needed} bytes of {free}" if needed > free else ""


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


SECTIONS = (("tails", measurements), ("catalogue", catalogue), ("candidates", candidates))


def run(plan: Plan, *, say: Callable[[str], object]) -> dict[str, object]:
    """Run everything and return what is written."""
    results: dict[str, object] = {"machine": header(plan.device), "tuning": asdict(plan.tuning)}
    start = time.monotonic()
    checked = []
    names = [variant.name for variant in plan.variants]
    for result in checks(plan.device, [*names, MUON_NAME], plan.workers):
        checked.append(result)
        if not result["ok"]:
            say(f"WRONG  {result['check']}: {result['wrong']}")
    wrong = sum(not result["ok"] for result in checked)
    say(f"{len(checked) - wrong} checks passed, {wrong} failed")
    results["checks"] = checked
    roof = copy_gbps(plan.device)
    say(f"copy bandwidth {roof:.0f} GB/s")
    results["copy_gbps"] = round(roof, 1)
    for name, rows in SECTIONS:
        found = []
        for row in rows(plan, roof):
            found.append(row)
            say(_line(row))
        results[name] = found
        if name == "tails":  # the most telling; then what no other section shows
            results["steps"] = _section(lambda: _whole_steps(plan, say), say, "steps")
            results["tests"] = _section(lambda: _tests(plan), say, "tests")
    results["seconds"] = round(time.monotonic() - start, 1)
    return results


def _section(
    work: Callable[[], list[dict[str, object]]], say: Callable[[str], object], name: str
) -> list[dict[str, object]]:
    """Do a part of the suite; what fails there is a row, and the rest goes on."""
    try:
        return work()
    except Exception as error:
        say(f"{name} | failed: {type(error).__name__}: {error}")
        return [{"failed": f"{type(error).__name__}: {error}"[:2000]}]


def _whole_steps(plan: Plan, say: Callable[[str], object]) -> list[dict[str, object]]:
    # here, so that a checkout whose compiler does not import still measures its kernels
    steps = importlib.import_module("benchmarks.gpu.steps")
    end = min(plan.deadline, time.monotonic() + SECONDS_FOR_STEPS)
    rows = []
    for row in steps.steps(plan.device, lambda: time.monotonic() > end):
        complaint = steps.wrong(row)
        rows.append({**row, "ok": not complaint and "failed" not in row})
        if complaint:
            say(f"WRONG  {complaint}")
        say(_step_line(row))
    return rows


def _step_line(row: dict[str, object]) -> str:
    head = f"{row['case']} | {row['implementation']:34}"
    if "median_ms" not in row:
        return f"{head} | {row.get('skipped') or row.get('failed')}"
    peak = row["peak_bytes"]
    held = "" if peak is None else f", peak {peak / 2**20:.1f} MiB"  # type: ignore[operator]
    return f"{head} | {row['median_ms']:9.3f} ms{held}, differs by {row['difference']:.1e}"


def _tests(plan: Plan) -> list[dict[str, object]]:
    """Run the tests that need a GPU, in a process of their own: a broken device ends that alone."""
    if plan.device.type != "cuda":
        return [{"skipped": "no GPU"}]
    if importlib.util.find_spec("pytest") is None:
        return [{"skipped": "pytest is not installed"}]
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "tests/cuda"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_FOR_TESTS,
        )
    except subprocess.TimeoutExpired:
        return [{"failed": f"not done after {SECONDS_FOR_TESTS} s"}]
    print(done.stdout[-1500:], flush=True)
    return [{"ok": done.returncode == 0, "said": done.stdout[-6000:] + done.stderr[-2000:]}]


def _line(row: dict[str, object]) -> str:
    head = [
        str(row[k])
        for k in ("elements", "tensors", "tail", "kernel", "candidate", "bf16")
        if k in row
    ]
    name = str(row.get("implementation", ""))
    if "gbps" not in row:
        why = row.get("skipped") or row.get("failed")
        return f"{' | '.join(head)} | {name:18} | {why}"
    numbers = f"{row['median_ms']:9.3f} ms {row['gbps']:8} GB/s {row['fraction_of_copy']:.0%}"
    return f"{' | '.join(head)} | {name:18} | {numbers}"


def _plan(chosen: argparse.Namespace) -> Plan:
    device = torch.device(chosen.device)
    deadline = time.monotonic() + chosen.seconds
    variants = [v for v in VARIANTS if chosen.only is None or v.name in chosen.only]
    real = device.type == "cuda"
    # without a GPU, one pass through all the code, in the interpreter
    return Plan(
        device=device,
        sizes=SIZES if real else (3000,),
        tensors=TENSORS if real else (3,),
        compiled=COMPILED if real else ((3000, 3),),
        variants=variants,
        candidates=CANDIDATES if real else CANDIDATES[:2],
        tuning=tuning_for(device),
        repeats=20 if real else 2,
        warmup=3 if real else 0,
        deadline=deadline,
        workers=max(1, min(8, (os.cpu_count() or 1) // 2)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; the exit code is 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Check and measure the kernels on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=420, help="then measure nothing more")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, help="check only these kernels")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu tests the suite itself, in the interpreter")
    plan = _plan(chosen)
    results = run(plan, say=lambda line: print(line, flush=True))
    path = result_path(chosen.out, results["machine"])  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(f"wrote {path}\n")
    checked = [*results["checks"], *results["steps"], *results["tests"]]  # type: ignore[misc]
    return 0 if all(check.get("ok", "skipped" in check) for check in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
