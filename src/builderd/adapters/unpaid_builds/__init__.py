"""Builds that cost nothing, kept apart from the database."""
