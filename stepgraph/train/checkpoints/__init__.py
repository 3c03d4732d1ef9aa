"""Checkpoints: the file and its contents.

Files, in reading order:

    files.py             files, written atomically and loaded safely
    training_state.py    the state needed to resume a training
    hyper_parameters.py  the arguments of a module's `__init__`
    randomness.py        random states
"""
