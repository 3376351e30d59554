"""Paths that the server and the API's calls share."""

#: Every call of the API's first version begins so.
PREFIX = "/api/v1"
