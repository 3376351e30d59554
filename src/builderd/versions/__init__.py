"""Versions of a builder: deployments, rollback, differences between two."""
