"""sockscope: names what is wrong with a server's sockets, with the evidence and the mend."""

__version__ = "0.1.0"
