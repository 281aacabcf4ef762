"""Descriptor tables replayed from control events, and events given to what they name."""
