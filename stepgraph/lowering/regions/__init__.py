"""Runs of operators that a compiler gets.

Files, in reading order:

    select.py        which nodes go to a compiler, and in which runs
    inductor.py      compiles a run with Inductor
    indices.py       checks of indices and divisors ahead of compiled code
    compiled_run.py  a compiled run, tried beside its eager form first
    driver/          calls the kernels of a region from C++
"""
