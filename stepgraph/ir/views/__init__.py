"""What is derived from a step graph.

Files, in reading order:

    protocol.py      what the views read of a step graph
    dependencies.py  the orderings that a schedule must keep
    verify.py        whether a graph is well formed and means what another one means
    text.py          a graph in words
    dot.py           a graph as Graphviz text
"""
