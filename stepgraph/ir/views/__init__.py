"""Views: values derived from a step graph.

Files, in reading order:

    protocol.py      the interface through which views read a step graph
    dependencies.py  the orderings that a schedule must keep
    verify.py        checks that a graph is well formed, and equivalent to another one
    text.py          a graph as readable text
    dot.py           a graph as Graphviz text
"""
