"""Files in a builder's ``/app``, and uploads of archives that are too large for JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from builderd.core.errors import NotFound, PreconditionFailed, ValidationFailed
from builderd.core.ids import TenantId, TokenId, UploadId


class FileKind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    #: A symbolic link, which is shown and never followed.
    LINK = "link"
    #: A socket, a pipe or a device: shown, and never opened.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Entry of a folder. ``size`` in bytes, ``mode`` the twelve permission bits, ``target`` of a symbolic link.

    ``tag`` (the ETag) changes whenever the content may have changed.
    """

    name: str
    kind: FileKind
    size: int
    mode: int
    modified_at: datetime
    tag: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class FilePage:
    """A page of a folder's entries, by their names; ``total`` is how many the folder has."""

    entries: Sequence[FileEntry]
    total: int


#: Matches every tag.
ANY_TAG = "*"


@dataclass(frozen=True, slots=True)
class Condition:
    """Precondition of a change (RFC 9110, 13.1): the file's tag is one of ``matches`` and none of ``differs``."""

    matches: frozenset[str] | None = None
    differs: frozenset[str] | None = None

    def check(self, tag: str | None) -> None:
        """Check the present tag (None: no file). Raises ``PreconditionFailed``."""
        if self.matches is not None and not _matches_any(tag, self.matches):
            raise PreconditionFailed("The file is not the one that you looked at: look again, and repeat the change.")
        if self.differs is not None and _matches_any(tag, self.differs):
            raise PreconditionFailed("There is such a file already.")


def _matches_any(tag: str | None, tags: frozenset[str]) -> bool:
    return tag is not None and (tag in tags or ANY_TAG in tags)


UNCONDITIONAL = Condition()


def no_file(path: str) -> NotFound:
    """Return the error for a path at which there is nothing."""
    return NotFound(f"There is nothing at {path} in the builder's /app.")


def bad_path(why: str) -> ValidationFailed:
    """Return the error for a path that the call cannot work on."""
    return ValidationFailed({"path": [why]})


IS_FOLDER = "is a folder: list it with GET …/files?path=…"
IS_LINK = "is a link, or lies behind one, and links are not followed: give the path that it leads to"
IS_OTHER = "is neither a file nor a folder, and is not opened"
IS_FILE = "is no folder"
NOT_EMPTY = "is a folder that is not empty: add ?recursive=true to delete it with all that is in it"


LIFETIME = timedelta(hours=24)
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Upload:
    """Upload. ``size`` in bytes and ``sha256`` (64 hex characters) as announced, or None.

    ``complete`` once all bytes arrived and match the announcement. ``secret_hash`` is that of the signature in its URL.
    ``token_id`` is the API token that made it, with which it ends.
    """

    id: UploadId
    tenant_id: TenantId
    secret_hash: str
    created_at: datetime
    expires_at: datetime
    size: int | None = None
    sha256: str | None = None
    complete: bool = False
    token_id: TokenId | None = None


@dataclass(frozen=True, slots=True)
class UploadRules:
    """Limits of uploads: bytes of one, bytes and number of a tenant's unexpired ones."""

    max_bytes: int = 1_000_000_000
    max_tenant_bytes: int = 5_000_000_000
    max_count: int = 20
