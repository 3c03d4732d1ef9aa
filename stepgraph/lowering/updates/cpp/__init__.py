"""Optimizer updates in C++, for CPUs, without the time that torch's kernels spend on each tensor.

Torch's fused CPU kernels take microseconds for each tensor, also for small ones. These take tens
of nanoseconds, and as long as torch's for large tensors.

Files, in reading order:

    kernel.py    calls of the kernels, and checks of their tensors
    updates.cpp  the kernels
"""

from stepgraph.lowering.updates.cpp.kernel import (
    CompiledKernel,
    CompiledLaunch,
    compiled_kernels,
)

__all__ = ["CompiledKernel", "CompiledLaunch", "compiled_kernels"]
