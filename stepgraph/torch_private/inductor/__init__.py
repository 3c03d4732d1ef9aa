"""Inductor as a compiler of one inference graph.

Files, in reading order:

    compile.py  compiles a graph
    layouts.py  memory layouts in such a graph
    wrapper.py  the Python around its kernels, parsed to a list of calls
    cpp.py      C++ of this library, compiled by Inductor's builder
"""
