"""Conditions that forbid a capture or a replay, and requirements of the options of a call.

Files, in reading order:

    preconditions.py  process state and inputs that forbid a capture or a replay
    window.py         requirements of `accumulate` and `microbatches`
    split.py          requirements of a split batch
    dtypes.py         the dtype of the parameters that a precision requires
    update_scope.py   which updates are element-wise, so that passes may move them
"""
