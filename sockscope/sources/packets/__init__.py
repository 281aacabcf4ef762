"""Packets: live capture, and capture files read into the packet table."""
