"""How servers were stopped."""
