"""The loop over epochs and batches.

Files, in reading order:

    preparation.py  connects a module and a trainer before the first batch
    checks.py       checks for contradictory arguments
    fit.py          the loop over epochs and batches
    batches.py      the batches of an epoch, and of a resumed one
    validation.py   one validation
    progress.py     counters: epochs, batches, updates
    processes.py    one process, or several started with `torchrun`
"""
