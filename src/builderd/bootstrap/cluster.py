"""The cluster of the engine ``incus``, for the operator's commands."""

from __future__ import annotations

from builderd.engine.incus.client import IncusOptions
from builderd.engine.incus.provider import Administration, MemberState, Pool, address_towards
from builderd.settings import Settings

__all__ = ["Administration", "MemberState", "Pool", "administration", "default_address"]

#: An address of the internet (RFC 5737: reserved for documentation); nothing is sent to it.
_ELSEWHERE = "192.0.2.1:9"


def administration(settings: Settings) -> Administration:
    """Return the cluster's administration. Close it."""
    return Administration(IncusOptions(**dict(settings.incus)))


def default_address() -> str:
    """Return this machine's address on the way to the internet. Raises ``ValidationFailed``."""
    return address_towards(_ELSEWHERE)
