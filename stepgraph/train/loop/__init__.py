"""The loop over epochs and batches.

Files, in reading order:

    preparation.py  brings a module and a trainer together
    checks.py       arguments that contradict each other, found first
    fit.py          the loop over epochs and batches
    batches.py      the batches of an epoch, and where a resumed one goes on
    validation.py   a validation, after which everything is as before
    progress.py     which epoch, which batch, how many updates
    processes.py    one process, or several started with `torchrun`
"""
