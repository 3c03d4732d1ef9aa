"""A compiled region as one call: its kernels and matrix products without Python in between.

Inductor calls its kernels from Python. In a small model this Python takes as long as the kernels:
one microsecond to make a tensor, two to call a matrix product. Here the wrapper is parsed once, and
its calls run in C++: products are computed by the BLAS that torch links, intermediate results are
stored in memory that is kept between calls, and only results are new tensors.

Files, in reading order:

    encode.py   a wrapper as a program of int64 numbers
    scratch.py  the offsets of intermediate memories in one block
    driver.py   builds and calls such a program
    driver.cpp  the interpreter of such programs
"""

from stepgraph.lowering.regions.driver.driver import Driver, drive

__all__ = ["Driver", "drive"]
