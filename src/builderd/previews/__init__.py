"""Previews: routes of visitors to running builders, preview links, the proxy."""
