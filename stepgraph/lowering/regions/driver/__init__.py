"""A compiled region as one call: its kernels and matrix products without Python in between.

Inductor calls its kernels from Python. For the small tensors of a small model that Python takes as
long as the kernels: a microsecond to make a tensor, two to ask for a matrix product. Here the
wrapper is read once, and what it does is done in C++: products go to the BLAS that torch links,
what lies between two kernels lies in memory that is kept, and only results are new tensors.

Files, in reading order:

    encode.py   a wrapper as a program of int64 numbers
    scratch.py  where intermediate memories lie in one block
    driver.py   makes and calls such a program
    driver.cpp  runs it
"""

from stepgraph.lowering.regions.driver.driver import Driver, drive

__all__ = ["Driver", "drive"]
