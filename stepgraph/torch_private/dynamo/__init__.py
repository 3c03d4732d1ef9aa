"""Dynamo as a tracer: graph, guards and bytecode of one call.

Files, in reading order:

    hooks.py    what the capture gives to a trace
    scope.py    configuration and patches for the time of a trace
    patches.py  the parts of Dynamo that a trace replaces
    trace.py    one trace
    guards.py   its guards
    sources.py  Dynamo's names for where a value comes from
    errors.py   what Dynamo's exceptions say
"""
