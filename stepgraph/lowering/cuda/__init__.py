"""A program as a CUDA graph.

Files, in reading order:

    legality.py  the reasons why a program cannot be recorded
    record.py    division of a program into the recorded part and the host's part
"""
