"""What the launches are compiled for: the compile-time arguments of each kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from stepgraph_kernels.spec import MAX_COEFFICIENTS, MAX_STATES, Family, Tuning
from stepgraph_kernels.table import Bucket

# Most programs of the first launch, on any device: the order of a sum depends on it.
PARTIALS = 1024
# Tensors whose coefficients a program prepares at a time; float64 needs registers.
WIDTH = 128

TYPES: dict[torch.dtype | None, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    None: tl.float32,
}


def sweep_constants(family: Family, bucket: Bucket, tuning: Tuning) -> dict[str, Any]:
    """The compile-time arguments of `sweep_kernel` for one bucket."""
    param, grad, state, shadow = bucket.dtypes
    assert len(bucket.rule.states) <= MAX_STATES
    assert family.coefficients <= MAX_COEFFICIENTS
    names = ("PARAM_ALIGN", "GRAD_ALIGN", "STATE_ALIGN", "SHADOW_ALIGN", "AVERAGE_ALIGN")
    return {
        "UPDATE": bucket.rule.update,
        "STATES": len(bucket.rule.states),
        "STORES": len(bucket.rule.states) if bucket.rule.measure is None else 0,
        "COEFFICIENTS": family.coefficients,
        "PARAM": TYPES[param],
        "GRAD": TYPES[grad],
        "STATE": TYPES[state],
        "SHADOW": TYPES[shadow],
        **dict(zip(names, bucket.alignments, strict=True)),
        "HAS_SHADOW": shadow is not None,
        "HAS_AVERAGE": bucket.averaged,
        "GRADS": bucket.grads,
        "EVICTION": tuning.eviction,
        # an average is one more stream: half the elements keep the registers under 64
        "BLOCK": tuning.block // 2 if bucket.averaged else tuning.block,
    }


def measure_constants(family: Family, bucket: Bucket, tuning: Tuning) -> dict[str, Any]:
    """The compile-time arguments of `measure_kernel` for one bucket."""
    sweep = sweep_constants(family, bucket, tuning)
    shared = ("COEFFICIENTS", "PARAM", "GRAD", "STATE", "PARAM_ALIGN", "GRAD_ALIGN", "STATE_ALIGN")
    assert len(bucket.rule.states) == 2
    return {
        "MEASURE": bucket.rule.measure,
        **{name: sweep[name] for name in shared},
        "EVICTION": tuning.eviction,
        "BLOCK": tuning.block // 2,  # two sums beside four streams: keeps the registers under 64
        "WIDTH": 2 * WIDTH,
    }
