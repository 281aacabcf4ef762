"""The timeline while it happens."""
