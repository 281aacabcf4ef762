"""What `ss` and `netstat` print, read back into socket tables."""
