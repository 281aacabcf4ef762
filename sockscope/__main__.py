"""`python -m sockscope`."""

from sockscope.cli import main

main()
