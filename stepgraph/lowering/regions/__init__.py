"""Runs of operators that a compiler gets."""
