"""A program as a CUDA graph.

Files, in reading order:

    legality.py  every reason why a program cannot be recorded
    record.py    what the device records, and what the host does after it
"""
