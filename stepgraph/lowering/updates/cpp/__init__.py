"""Optimizer updates in C++ of our own, for CPUs: what torch's kernels cost for each tensor is gone.

Torch's fused CPU kernels take microseconds for a tensor however small it is. These take tens of
nanoseconds, and the same time as torch's where tensors are large.

Files, in reading order:

    kernel.py    which tensors the kernels take, and their calls
    updates.cpp  the kernels
"""

from stepgraph.lowering.updates.cpp.kernel import (
    CompiledKernel,
    CompiledLaunch,
    compiled_kernels,
)

__all__ = ["CompiledKernel", "CompiledLaunch", "compiled_kernels"]
