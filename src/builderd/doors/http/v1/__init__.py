"""The calls under ``/api/v1``, one file a noun."""

PREFIX = "/api/v1"
