"""Signals inside one process."""
