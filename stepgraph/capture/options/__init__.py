"""The options of a call, for a trace and for an eager call.

Files, in reading order:

    call_options.py  `CallOptions`: how one call differs from the step as written
    current.py       the options of the part that is traced at this point
    microbatches.py  how a batch is split
    split_loop.py    a step as a loop over the parts of its batch
    forbidden.py     markers: a trace that reads one is refused
"""
