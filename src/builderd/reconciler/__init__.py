"""Brings what is to what should be: claim, look, step, record."""
