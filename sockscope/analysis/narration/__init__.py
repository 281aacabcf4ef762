"""Connections, calls and processes in words."""
