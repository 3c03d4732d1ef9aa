"""What is derived from a step graph: dependencies, verification, text, Graphviz."""
