"""Optimizer updates in our own C++, for CPUs: faster than torch's kernels for small tensors.

Torch's fused CPU kernels take microseconds for each tensor, however small. These take tens of
nanoseconds, and the same time as torch's for large tensors.

Files, in reading order:

    kernel.py    the tensors that the kernels accept, and their calls
    updates.cpp  the kernels
"""

from stepgraph.lowering.updates.cpp.kernel import (
    CompiledKernel,
    CompiledLaunch,
    compiled_kernels,
)

__all__ = ["CompiledKernel", "CompiledLaunch", "compiled_kernels"]
