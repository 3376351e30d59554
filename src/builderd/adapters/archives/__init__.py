"""Backup repositories."""
