"""What the options of a call mean."""
