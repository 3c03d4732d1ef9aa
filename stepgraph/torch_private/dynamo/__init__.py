"""Dynamo as a tracer: graph, guards and bytecode of one call."""
