"""Owners of sockets by a BPF iterator: its program, compiled when the package is built, and who runs it."""
