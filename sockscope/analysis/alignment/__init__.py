"""Evidence without a common clock, laid side by side: offsets from what both tell of the same connections."""
