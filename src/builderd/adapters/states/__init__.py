"""Backups of the service's own state."""
