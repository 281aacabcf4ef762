"""An strace log as batches of events: the text read back into what a live engine would have recorded."""
