"""What `explain()` returns."""
