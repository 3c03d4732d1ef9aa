"""Checkpoints: the file, and what is in it.

Files, in reading order:

    files.py             written atomically, loaded safely
    training_state.py    everything that resuming needs
    hyper_parameters.py  the arguments of `__init__`
    randomness.py        random states
"""
