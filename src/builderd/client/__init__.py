"""The client of the HTTP API: one method a call, in the shapes of the wire."""

from builderd.client.client import Client, Stage
from builderd.client.errors import ApiError, NoAnswer

__all__ = ["ApiError", "Client", "NoAnswer", "Stage"]
