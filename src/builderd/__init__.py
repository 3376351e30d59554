"""builderd: one call turns code into a running, isolated app with a live URL."""

__version__ = "0.1.0"
