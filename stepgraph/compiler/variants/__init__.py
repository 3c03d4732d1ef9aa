"""A variant of a step: one path through the user's Python.

Files, in reading order:

    capture_session.py  the captures of one compiled step, and their limits
    rewrite.py          a captured step after the passes, lowered
    rehearse.py         runs a new program and the eager call, and compares
    variant.py          a program with its guards, and its construction
    verify.py           compares the first replays with eager calls, for `verify=n`
    cuda_recording.py   the CUDA graph of a variant, or why there is none
"""
