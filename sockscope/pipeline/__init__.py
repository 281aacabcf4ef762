"""Wires the rooms: `record` watches a target into a recording, `analyze` makes a report of one.

Nothing here prints; `cli` does.
"""
