"""Requests and their answers, and where their time went."""
