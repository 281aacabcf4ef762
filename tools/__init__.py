"""What keeps the docs true."""
