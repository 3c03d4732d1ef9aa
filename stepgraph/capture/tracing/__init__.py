"""From a call to a flat graph."""
