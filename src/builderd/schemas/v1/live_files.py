"""Files on a builder's disk."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.files import FileKind
from builderd.schemas.v1.envelope import Page, Success, Time
from builderd.schemas.v1.shape import View


class FileEntry(View):
    """Entry of a folder.

    ``size`` in bytes, ``mode`` the permissions in octal, ``target`` what a link points to (links are not followed).

    Bytes of a name that are not UTF-8 are shown as U+FFFD; such a file cannot be named in a path.
    """

    name: str
    type: FileKind
    size: int
    mode: str = Field(pattern="^[0-7]{4}$")
    mtime: Time
    target: str | None


class FileAnswer(Success[FileEntry]):
    """One file."""


class FilePage(Page[FileEntry]):
    """Page of a folder's entries, by name."""
