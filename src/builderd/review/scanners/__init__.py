"""Scanners: review code before it runs."""
