"""Inductor as a compiler of one inference graph."""
