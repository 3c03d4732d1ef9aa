"""What the options of a call mean, for a trace and for an eager call.

Files, in reading order:

    call_options.py  how one call differs from the step as it is written
    current.py       the options under which a trace goes on at this point
    microbatches.py  how a batch is split
    split_loop.py    a step as a loop over the parts of its batch
    forbidden.py     marks for what a trace must not touch
"""
