"""Client of earlier releases: ``builderd.client.Client``. Use ``builderd.Builderd``; the next release removes this."""

from builderd.client.legacy.client import Client
from builderd.client.legacy.errors import ApiError, NoAnswer
from builderd.client.legacy.versions import Stage

__all__ = ["ApiError", "Client", "NoAnswer", "Stage"]
