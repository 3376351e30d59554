"""SSH: grants to log in to a builder."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.ssh import DEFAULT_MINUTES, MAX_MINUTES, MIN_MINUTES
from builderd.schemas.v1.envelope import Success, Time
from builderd.schemas.v1.shape import JsonInt, Shape, View


class NewSshGrant(Shape):
    """Options of a new SSH token."""

    expires_minutes: JsonInt = Field(default=DEFAULT_MINUTES, ge=MIN_MINUTES, le=MAX_MINUTES)


class SshGrant(View):
    """SSH token with its command.

    ``token`` is the user name and shown only once. ``known_hosts`` is a line that trusts the gateway.
    """

    ssh_command: str
    token: str
    expires_at: Time
    host: str
    port: int
    fingerprint: str
    known_hosts: str


class SshGrantAnswer(Success[SshGrant]):
    """Response with a new SSH token."""


class SshEnded(View):
    """Builder whose SSH tokens were all revoked."""

    uuid: str


class SshEndedAnswer(Success[SshEnded]):
    """Response to the end of all SSH tokens."""
