"""One builder as it is shown, and the token that asks for it, read together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId
from builderd.domain.prices import Sum
from builderd.domain.sandboxes import Sandbox
from builderd.domain.tokens import Token
from builderd.domain.versions import Version


@dataclass(frozen=True, slots=True)
class ShownBuilder:
    """A builder with its current version and its total cost (``spent``)."""

    builder: Builder
    #: None if its variables and input are larger than was asked for.
    version: Version | None
    spent: Sum
    has_backups: bool


@dataclass(frozen=True, slots=True)
class BuilderRead:
    """A token, and a live builder of its tenant."""

    token: Token
    shown: ShownBuilder | None


@dataclass(frozen=True, slots=True)
class CommandRead:
    """A token, and a live builder of its tenant with its open sandbox, which is of no trial."""

    token: Token
    builder: Builder | None
    sandbox: Sandbox | None


class BuilderReads(Protocol):
    def by_secret(self, secret_hash: str, builder: BuilderId, now: datetime, max_size: int) -> BuilderRead | None:
        """Return the token of this secret, valid or not, and the builder; None without such a token.

        ``max_size``: characters that the version's variables and input may have together.
        """

    def shown(self, builder: BuilderId, now: datetime) -> ShownBuilder | None:
        """Return the builder, also one that is deleted, with its version, however large; None for an unknown one."""

    def for_command(self, secret_hash: str, builder: BuilderId) -> CommandRead | None:
        """Return the token of this secret, valid or not, and the builder; None without such a token."""
