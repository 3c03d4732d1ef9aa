"""`optimizer.step()` in fused kernels.

Files, in reading order:

    choose.py          which kernels an optimizer gets, or why none
    cpu.py             updates on a CPU, tried beside `step()` first
    torch_fused.py     torch's fused CPU kernels
    cpp/               CPU kernels of this package
    triton.py          updates on a GPU
    master_weights.py  float32 copies of low-precision weights and state
"""
