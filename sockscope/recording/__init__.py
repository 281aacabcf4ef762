"""The session on disk: a folder of standard files (docs/recording-format.md)."""
