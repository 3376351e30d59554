"""Uploads on the way to a bundle."""
