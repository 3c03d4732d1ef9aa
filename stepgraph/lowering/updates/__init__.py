"""`optimizer.step()` in fused kernels.

Files, in reading order:

    choose.py          the kernels for an optimizer, or why there are none
    cpu.py             updates on a CPU, compared with `step()` in a trial
    torch_fused.py     torch's fused CPU kernels
    cpp/               CPU kernels of this package
    triton.py          updates on a GPU
    master_weights.py  float32 copies of low-precision weights and state
"""
