"""What a trace inlines, which guards it keeps, and the flat graph that it becomes.

Files, in reading order:

    trace_hooks.py     the hooks of one trace
    backward.py        what is inlined for `loss.backward()`
    functions.py       what is inlined for functions that Dynamo cannot trace
    kinds.py           the kind of a node, from the code that made it
    guard_filter.py    which of Dynamo's guards are kept
    flatten.py         from Dynamo's graph to one flat ATen graph
    data_dependent.py  operators that check values before they compute
    names.py           names for inputs and tracked objects
"""
