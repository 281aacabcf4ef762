"""Packets as TCP connections."""
