"""SSH: grants to log in to a builder."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.ssh import DEFAULT_MINUTES, MAX_MINUTES, MIN_MINUTES
from builderd.wire.v1.envelope import Success, Time
from builderd.wire.v1.shape import JsonInt, Shape, View


class NewSshGrant(Shape):
    """How long the token opens the builder."""

    expires_minutes: JsonInt = Field(default=DEFAULT_MINUTES, ge=MIN_MINUTES, le=MAX_MINUTES)


class SshGrant(View):
    """``token`` is the user name and shown this once. ``known_hosts`` is a line that trusts the gateway."""

    ssh_command: str
    token: str
    expires_at: Time
    host: str
    port: int
    fingerprint: str
    known_hosts: str


class SshGrantAnswer(Success[SshGrant]):
    """A way in."""


class SshEnded(View):
    """The builder that nobody can log in to any more."""

    uuid: str


class SshEndedAnswer(Success[SshEnded]):
    """All grants are over."""
