"""Client of the HTTP API: one method per call, with the schemas of the API as arguments and results."""

from builderd.client.client import Client
from builderd.client.errors import ApiError, NoAnswer
from builderd.client.versions import Stage

__all__ = ["ApiError", "Client", "NoAnswer", "Stage"]
