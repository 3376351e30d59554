"""The client of the HTTP API: methods for its calls, in the shapes of the wire."""

from builderd.client.client import Client
from builderd.client.errors import ApiError, NoAnswer
from builderd.client.versions import Stage

__all__ = ["ApiError", "Client", "NoAnswer", "Stage"]
