"""`optimizer.step()` in fused kernels.

Files, in reading order:

    choose.py          chooses the fused update of an optimizer
    not_fused.py       why an update is not fused
    cpu.py             updates on a CPU, the first one compared with `step()`
    torch_fused.py     torch's fused CPU kernels
    cpp/               CPU kernels of this package
    triton.py          updates on a GPU
    master_weights.py  float32 copies of low-precision weights and state
"""
