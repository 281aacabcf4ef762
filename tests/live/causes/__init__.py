"""Programs with more than one fault, or with one that brings on another. Not tests: programs.

Each is started as `NAME.py server PORT`, says READY, and ends at SIGTERM; `NAME.py client PORT` says DONE and stays.
"""
