"""Regions: runs of operators that are compiled.

Files, in reading order:

    select.py        selection of the nodes to compile, in runs
    inductor.py      compilation of a run with Inductor
    indices.py       checks of indices and divisors before compiled code runs
    compiled_run.py  `CompiledRun`: compared with its eager form in its first call
    driver/          calls of the kernels of a region from C++
"""
