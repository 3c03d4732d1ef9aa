"""The user objects that a step acts on."""
