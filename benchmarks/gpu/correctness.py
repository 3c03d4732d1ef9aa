"""Every kernel and layout on this device against its reference in float64."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from benchmarks.gpu.machine import ROOT
from stepgraph_kernels.catalogue import VARIANTS, Update, Variant, update_class
from stepgraph_kernels.comparison import Settings, make_target, worst_difference
from stepgraph_kernels.layouts import LAYOUTS
from stepgraph_kernels.muon import MUON, MuonUpdate
from stepgraph_kernels.spec import Target, Tuning

MUON_NAME = "muon"  # no variant: it takes matrices only
LONGEST_S = 180  # of the checks of one kernel
STEPS = (0, 1, 1000)
SHAPES = ((1,), (7,), (2047,), (2049,), (1000, 1003), (70001,))
SMALL_SHAPES = ((7,), (33, 31))


def tuning_for(device: torch.device) -> Tuning:
    """The defaults on a GPU; small blocks in the interpreter."""
    return Tuning() if device.type == "cuda" else Tuning(block=1024, chunk=2048)


def checks(device: torch.device, names: Sequence[str], workers: int) -> Iterator[dict[str, object]]:
    """Run all checks of the named kernels, each kernel in a process of its own.

    Compiling takes most of the time and one core; and a kernel that writes where it must not
    spoils its own process, not the checks that follow.

    Args:
        device: Where.
        names: Of variants, or `muon`.
        workers: Processes at a time.

    Yields:
        `check`, `ok` and what went wrong if it did.
    """
    with ThreadPoolExecutor(workers) as pool:
        # the last of the catalogue first: it has most to compile
        for results in pool.map(partial(_in_process, device), reversed(names)):
            yield from results


def _in_process(device: torch.device, name: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", __spec__.name, "--device", str(device), "--only", name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "kernels")}
    options = {"capture_output": True, "text": True, "timeout": LONGEST_S}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **options)
    except subprocess.TimeoutExpired:
        return [{"check": f"{name}: all", "ok": False, "wrong": f"longer than {LONGEST_S} s"}]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    results: list[dict[str, object]] = [json.loads(line) for line in lines]
    if done.returncode:
        wrong = f"exit code {done.returncode}: {done.stderr[-500:]}"
        results.append({"check": f"{name}: all", "ok": False, "wrong": wrong})
    return results


def checks_of(name: str, device: torch.device, tuning: Tuning) -> Iterator[dict[str, object]]:
    """Run the checks of one kernel in this process."""
    if name == MUON_NAME:
        yield _guarded("muon: reference", _muon, device, tuning)
        return
    variant = next(variant for variant in VARIANTS if variant.name == name)
    yield from _layouts(variant, device, tuning)
    yield _guarded(f"{name}: same bits twice", _same_twice, variant, device, tuning)
    yield _guarded(f"{name}: unaligned", _unaligned, variant, device, tuning)
    if device.type == "cuda":
        yield _guarded(f"{name}: CUDA graph", _graph, variant, device, tuning)


def draw(variant: Variant, device: torch.device, settings: Settings, seed: int = 0) -> list[Target]:
    """Parameters of every layout and shape."""
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES if device.type == "cuda" else SMALL_SHAPES
    return [
        make_target(
            variant.family,
            variant.group(),
            layout,
            shape,
            generator=generator,
            device=device,
            settings=settings,
        )
        for layout in LAYOUTS
        for shape in shapes
    ]


def _layouts(variant: Variant, device: torch.device, tuning: Tuning) -> Iterator[dict[str, object]]:
    """All layouts at once, with clip and scale; a fresh optimizer, an old one, a very old one."""
    for step in STEPS:
        settings = Settings(step=step, max_norm=1.0, scale=8.0, grads="zero", tuning=tuning)
        yield _guarded(f"{variant.name}: step {step}", _reference, variant, device, settings)


def _reference(variant: Variant, device: torch.device, settings: Settings) -> str:
    targets = draw(variant, device, settings)
    errors = worst_difference(variant.family, variant.group(), targets, settings)
    wrong = {name: round(error, 2) for name, error in errors.items() if not error <= 1}
    return f"error over tolerance: {wrong}" if wrong else ""


def _update(variant: Variant, targets: list[Target], tuning: Tuning) -> Update:
    update = update_class(variant.family)(
        variant.family,
        targets,
        [variant.group()],
        clip=True,
        check_finite=True,
        average_weight=0.1,
        tuning=tuning,
    )
    update.set_max_norm(1.0)
    return update


def _same_twice(variant: Variant, device: torch.device, tuning: Tuning) -> str:
    settings = Settings(tuning=tuning)
    both = [draw(variant, device, settings) for _ in range(2)]
    norms = []
    for targets in both:
        update = _update(variant, targets, tuning)
        update.launch()
        norms.append(update.norm.item())
    if norms[0] != norms[1]:
        return f"norms {norms}"
    return _difference(*both)


def _unaligned(variant: Variant, device: torch.device, tuning: Tuning) -> str:
    """Tensors that start one element off must come out as the aligned ones do."""
    settings = Settings(tuning=tuning)
    plain, shifted = (draw(variant, device, settings) for _ in range(2))
    for target in shifted:
        target.param, target.grad = _shift(target.param), _shift(target.grad)
        for name in variant.family.rule(variant.group()).states:
            target.state[name] = _shift(target.state[name])
    for targets in (plain, shifted):
        _update(variant, targets, tuning).launch()
    worst = max(
        float((a.param.double() - b.param.double()).abs().max())
        for a, b in zip(plain, shifted, strict=True)
    )
    # the tree of the norm's sum is the same; only fused multiply-adds may differ
    return f"worst difference {worst}" if not worst <= 2e-2 else ""


def _graph(variant: Variant, device: torch.device, tuning: Tuning) -> str:
    """Three replays equal three launches, bit for bit, with a new learning rate for the last."""
    settings = Settings(tuning=tuning)
    launched, replayed = (draw(variant, device, settings) for _ in range(2))
    updates = [_update(variant, targets, tuning) for targets in (launched, replayed)]
    group = {**variant.group(), "lr": 0.01}
    updates[0].launch()
    updates[1].launch()  # compiles; a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        updates[1].launch()
    for repeat in range(2):
        if repeat == 1:
            for update in updates:
                update.set_hyper([group])
        updates[0].launch()
        graph.replay()
    torch.cuda.synchronize(device)
    return _difference(launched, replayed)


def _muon(device: torch.device, tuning: Tuning) -> str:
    """Momentum as the reference has it; weights within the bf16 of the matrix products."""
    shapes = ((64, 192), (192, 64), (64, 192)) if device.type == "cuda" else ((8, 12), (12, 8))
    generator = torch.Generator().manual_seed(0)
    group = torch.optim.Muon([torch.zeros(2, 2)], lr=0.05).param_groups[0]
    drawn = [
        [torch.randn(shape, generator=generator).to(device) for _ in range(2)] for shape in shapes
    ]
    targets = [Target(p, g, MUON.initial_state(p, group), name="matrix") for p, g in drawn]
    wanted = [
        (p.clone(), {n: s.clone() for n, s in t.state.items()})
        for (p, _), t in zip(drawn, targets, strict=True)
    ]
    MuonUpdate(MUON, targets, [group], tuning=tuning).launch()
    for target, (param, state) in zip(targets, wanted, strict=True):
        MUON.reference(param, target.grad, state, group)
        buffers = (target.state["momentum_buffer"], state["momentum_buffer"])
        momentum = float((buffers[0] - buffers[1]).abs().max())
        weights = float((target.param - param).abs().max())
        if not (momentum <= 1e-5 and weights <= 0.1 * group["lr"]):
            return f"momentum off by {momentum}, weights by {weights}"
    return ""


def _difference(ones: list[Target], others: list[Target]) -> str:
    for one, other in zip(ones, others, strict=True):
        if not torch.equal(one.param, other.param):
            return f"{one.name}: parameters differ"
        for name, tensor in one.state.items():
            if not torch.equal(tensor, other.state[name]):
                return f"{one.name}: {name} differs"
    return ""


def _shift(tensor: torch.Tensor) -> torch.Tensor:
    backing = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return backing[1:].view(tensor.shape).copy_(tensor)


def _guarded(name: str, check: object, *arguments: object) -> dict[str, object]:
    """An exception is a failed check, not the end of the suite."""
    try:
        wrong = check(*arguments)  # type: ignore[operator]
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:500]
    return {"check": name, "ok": not wrong} | ({"wrong": wrong} if wrong else {})


def main() -> None:
    """Check one kernel and print a JSON object for each result."""
    parser = argparse.ArgumentParser(description="Check one kernel.")
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--only", required=True)
    chosen = parser.parse_args()
    for result in checks_of(chosen.only, chosen.device, tuning_for(chosen.device)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
