"""Values and names. Pure: no I/O, no clock, no process."""
