"""Signals within one process."""
