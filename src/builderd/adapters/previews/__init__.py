"""The way in from the web."""
