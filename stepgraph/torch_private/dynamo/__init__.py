"""Dynamo as a tracer: graph, guards and bytecode of one call.

Files, in reading order:

    hooks.py    the functions and operators that the capture passes to a trace
    scope.py    configuration and patches during a trace
    patches.py  functions of Dynamo that a trace replaces
    trace.py    one trace
    guards.py   its guards
    sources.py  Dynamo's names of the sources of values
    errors.py   the contents of Dynamo's exceptions
"""
