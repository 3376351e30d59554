"""The ways in, independent of each other."""
