"""Scanners: what reads code with suspicion."""
