"""Captures of several places: which file is of which, how far their clocks are apart, who tells what, what was lost."""
