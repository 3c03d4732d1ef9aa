"""A variant of a step: captured, rewritten, rehearsed, built."""
