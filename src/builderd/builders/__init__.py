"""Builders: create, list, start, stop and delete them, and follow what comes of it."""
