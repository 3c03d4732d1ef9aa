"""The optimizer kernels on a GPU: are they right, and how fast are they beside torch's own.

    make gpu        or        PYTHONPATH=kernels python -m benchmarks.gpu

Needs torch and triton and a GPU, nothing else. Without a GPU, `--device cpu` runs the same code in
triton's interpreter on a few thousand elements: a test of the suite, not a measurement.
"""
