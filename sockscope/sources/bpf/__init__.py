"""Compiled BPF programs, loaded by libbpf's shared library: what both the engine and the socket owners need."""
