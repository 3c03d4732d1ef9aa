"""Compile every kernel for GPUs that are not here, and report what the compiler made of it.

    python -m stepgraph_kernels.ahead_of_time [--targets sm_90 gfx942] [--all-layouts]

Needs no GPU: triton ships the assemblers. Prints one JSON object for each kernel and target.
Not under `TRITON_INTERPRET`, which replaces the compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stepgraph_kernels.adafactor import ADAFACTOR
from stepgraph_kernels.adafactor.kernel import apply_kernel, fold_kernel, size_kernel, sums_kernel
from stepgraph_kernels.adafactor.tiles import tiling
from stepgraph_kernels.adafactor.update import (
    apply_constants,
    fold_constants,
    rule_of,
    size_constants,
    sums_constants,
)
from stepgraph_kernels.catalogue import VARIANTS, Variant
from stepgraph_kernels.constants import PARTIALS, WIDTH, measure_constants, sweep_constants
from stepgraph_kernels.decide import decide_kernel
from stepgraph_kernels.layouts import LAYOUTS, Layout
from stepgraph_kernels.measure import measure_kernel
from stepgraph_kernels.muon import APPLY, MUON
from stepgraph_kernels.spec import Family, GradientsAfter, Rule, Target, Tuning
from stepgraph_kernels.sweep import sweep_kernel
from stepgraph_kernels.table import Bucket, bucket_of

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    "addresses": "*i64",
    "grad_kind": "*i32",
    "chunk_tensor": "*i32",
    "chunk_offset": "*i64",
    "chunk_length": "*i32",
    "partial_square": "*fp32",
    "partial_broken": "*i32",
    "arrivals": "*i32",
    "scale": "*fp32",
    "found_inf": "*fp32",
    "max_norm": "*fp32",
    "verdict": "*fp32",
    "tensor_group": "*i32",
    "hyper": "*fp64",
    "coefficients": "*fp32",
    "tensors": "i32",
    "chunks": "i32",
    "first_chunk": "i32",
    "chunk_place": "*i32",
    "tensor_place": "*i32",
    "tensor_chunks": "*i32",
    "partials": "*fp32",
    "sums": "*fp32",
    "shapes": "*i64",
    "tiles": "*i64",
    "folds": "*i64",
    "scratch": "*fp32",
    "tile_sums": "*fp32",
    "count": "i32",
    "first": "i32",
}
# C a multiple of eight, or not; smaller than a tile; rows that are longer than the tile; a vector
FACTORED_SHAPES = {
    "matrix": (4096, 1024),
    "odd matrix": (4096, 1023),
    "small matrices": (64, 64, 3, 3),
    "vector": (4096,),
}
FACTORED_LAUNCHES: dict[Any, Any] = {
    sums_kernel: sums_constants,
    fold_kernel: fold_constants,
    size_kernel: size_constants,
    apply_kernel: apply_constants,
}
_ANYWHERE = ("scale", "found_inf", "max_norm")  # the caller's scalars may lie inside other tensors


@dataclass(frozen=True)
class Report:
    """What one compiled kernel uses.

    Attributes:
        kernel: Which kernel: `decide` or `sweep`, and the variant.
        layout: The choice of dtypes.
        target: The architecture.
        registers: For each thread.
        spilled_bytes: Of registers that went to memory, for each thread.
        shared_bytes: Shared memory of a program.
        wide_loads: 128-bit loads in the assembly.
        wide_stores: 128-bit stores in the assembly.
        middle_loads: 64-bit loads, as 16-bit tensors beside 32-bit ones have.
    """

    kernel: str
    layout: str
    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    wide_loads: int
    wide_stores: int
    middle_loads: int


def sweep_report(
    variant: Variant, layout: Layout, target: str, *, grads: GradientsAfter = "keep"
) -> Report:
    """Compile the second launch for one variant and layout."""
    rule = variant.family.rule(variant.group())
    return _sweep_report(variant.name, variant.family, rule, layout, target, grads)


def muon_reports(target: str) -> Iterator[Report]:
    """Compile the launches on either side of Muon's matrix products."""
    bf16 = torch.bfloat16
    for nesterov in (False, True):
        rule = MUON.rule({"nesterov": nesterov})
        name = "muon gather nesterov" if nesterov else "muon gather"
        yield _sweep_report(name, MUON, rule, Layout("float32", param=bf16), target, "keep")
    rule = APPLY.rule({})
    yield _sweep_report("muon apply", APPLY, rule, Layout("float32", grad=bf16), target, "keep")
    for family in (MUON, APPLY):
        yield decide_report(family, target)


def _sweep_report(
    name: str, family: Family, rule: Rule, layout: Layout, target: str, grads: GradientsAfter
) -> Report:
    tuning = Tuning()
    constants = sweep_constants(family, _bucket(rule, layout, grads, tuning), tuning)
    compiled = _compile(sweep_kernel, constants, target, tuning.threads)
    return _report(compiled, f"sweep {name}", layout.name, target)


def measure_report(variant: Variant, layout: Layout, target: str) -> Report:
    """Compile the launch between for a variant whose rule has one."""
    tuning = Tuning()
    bucket = _bucket(variant.family.rule(variant.group()), layout, "keep", tuning)
    constants = measure_constants(variant.family, bucket, tuning)
    compiled = _compile(measure_kernel, constants, target, tuning.threads)
    return _report(compiled, f"measure {variant.name}", layout.name, target)


def factored_reports(
    layout: Layout, target: str, shapes: Sequence[str] = tuple(FACTORED_SHAPES)
) -> Iterator[Report]:
    """Compile Adafactor's launches for each kind of tile: large and small matrices, vectors."""
    tuning = Tuning()
    for name in shapes:
        shape = FACTORED_SHAPES[name]
        param = torch.empty(shape)
        bucket = _bucket(rule_of(param), layout, "keep", tuning)
        (kind,) = tiling([param.shape], [bucket], tuning).classes
        for kernel, constants in FACTORED_LAUNCHES.items():
            compiled = _compile(kernel, constants(kind), target, tuning.threads)
            title = kernel.__name__.removesuffix("_kernel")
            yield _report(compiled, f"adafactor {title} {name}", layout.name, target)


def decide_report(
    family: Family, target: str, *, kinds: int = 1, clip: bool = True, summed: bool = False
) -> Report:
    """Compile the first launch of a family, for gradients of the given kinds."""
    tuning = Tuning()
    constants = {
        "PREPARE": family.prepare,
        "HYPERS": 2 + len(family.hyper_names),
        "COUNTERS": len(family.counters),
        "COEFFICIENTS": family.coefficients,
        "CLIP": clip,
        "CHECK": clip,
        "KINDS": kinds,
        "BLOCK": tuning.block,
        "WIDTH": WIDTH,
        "PARTIALS": PARTIALS,
        "SUMMED": summed,
    }
    compiled = _compile(decide_kernel, constants, target, tuning.reduce_threads)
    return _report(compiled, f"decide {family.name}", f"gradient kinds {kinds}", target)


def reports(targets: Sequence[str], *, all_layouts: bool) -> Iterator[Report]:
    """Compile everything; without `all_layouts`, the most used of it."""
    for target in targets:
        for variant in VARIANTS:
            every = all_layouts or variant.name == "adamw"
            if variant.family is ADAFACTOR:
                continue  # other launches, the same for all its variants
            for layout in LAYOUTS if every else LAYOUTS[:1]:
                yield sweep_report(variant, layout, target)
                if variant.family.rule(variant.group()).measure is not None:
                    yield measure_report(variant, layout, target)
            if variant.name == "adamw":
                yield sweep_report(variant, LAYOUTS[-1], target, grads="zero")
        yield from muon_reports(target)
        shapes = tuple(FACTORED_SHAPES) if all_layouts else ("matrix", "vector")
        for layout in LAYOUTS if all_layouts else LAYOUTS[:1]:
            yield from factored_reports(layout, target, shapes)
        yield decide_report(ADAFACTOR, target, summed=True)
        families = {variant.family.name: variant.family for variant in VARIANTS}
        for family in families.values():
            yield decide_report(family, target)
        yield decide_report(families["Adam"], target, kinds=63)
        yield decide_report(families["Adam"], target, clip=False)


def _bucket(rule: Rule, layout: Layout, grads: GradientsAfter, tuning: Tuning) -> Bucket:
    """The bucket of a layout, for tensors as the allocator gives them."""
    target = Target(
        param=torch.empty(16, dtype=layout.param),
        grad=torch.empty(16, dtype=layout.grad),
        state={name: torch.empty(16, dtype=layout.state) for name in rule.states},
        shadow=torch.empty(16, dtype=layout.shadow) if layout.shadow is not None else None,
        average=torch.empty(16) if layout.averaged else None,
    )
    return bucket_of(target, rule, grads, tuning)


def _compile(function: Any, constants: dict[str, Any], target: str, threads: int) -> Any:
    names = function.arg_names
    signature = {name: _TYPES.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*") and name not in _ANYWHERE
    }
    gpu = TARGETS[target]
    options = {"num_warps": threads // gpu.warp_size, "enable_fp_fusion": True}
    source = ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=gpu, options=options)


def _report(compiled: Any, kernel: str, layout: str, target: str) -> Report:
    read = _read_amd if TARGETS[target].backend == "hip" else _read_nvidia
    return Report(
        kernel=kernel,
        layout=layout,
        target=target,
        shared_bytes=compiled.metadata.shared,
        **read(compiled.asm),
    )


def _read_nvidia(asm: Any) -> dict[str, int]:
    ptx = asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return {
        "registers": used["REG"],
        "spilled_bytes": used["STACK"] + used["LOCAL"],
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        "wide_stores": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "middle_loads": len(re.findall(r"ld\.global\S*\.v2\.b32", ptx)),
    }


def _read_amd(asm: Any) -> dict[str, int]:
    text = asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])

    return {
        "registers": number("vgpr_count"),
        "spilled_bytes": 4 * number("vgpr_spill_count"),
        "wide_loads": text.count("load_dwordx4"),
        "wide_stores": text.count("store_dwordx4"),
        "middle_loads": text.count("load_dwordx2"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a report for each kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--all-layouts", action="store_true", help="every layout of every kernel")
    chosen = parser.parse_args(arguments)
    for report in reports(chosen.targets, all_layouts=chosen.all_layouts):
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
