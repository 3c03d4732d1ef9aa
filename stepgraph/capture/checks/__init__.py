"""What forbids a capture or a replay, and what the options of a call require of a step.

Files, in reading order:

    preconditions.py  process state and inputs that forbid a capture or a replay
    window.py         what `accumulate` and `microbatches` require of a step
    split.py          what a split batch requires of a step
    dtypes.py         the type of the parameters that a precision asks for
    update_scope.py   which updates are element-wise, so that they may move
"""
