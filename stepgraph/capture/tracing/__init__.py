"""The trace of a step: inlined functions, guards that are kept, the flat graph.

Files, in reading order:

    trace_hooks.py     the hooks of one trace
    backward.py        the function inlined for `loss.backward()`
    functions.py       functions inlined for those that Dynamo cannot trace
    kinds.py           the kind of a node, from the code that made it
    guard_filter.py    which of Dynamo's guards are kept
    flatten.py         from Dynamo's graph to one flat ATen graph
    data_dependent.py  functions that check values before they compute
    names.py           names for inputs and tracked objects
"""
