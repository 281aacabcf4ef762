"""Open files, socket rows and flows joined into connections."""
