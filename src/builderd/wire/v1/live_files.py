"""The files on a builder's disk, as they are shown."""

from __future__ import annotations

from pydantic import Field

from builderd.domain.files import FileKind
from builderd.wire.v1.envelope import Page, Success, Time
from builderd.wire.v1.shape import View


class FileEntry(View):
    """``size`` in bytes, ``mode`` the permissions in octal, ``target`` what a link points to (links are not followed).

    What is not UTF-8 in a name is shown as U+FFFD; such a file cannot be named in a path.
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
    """Entries of a folder, by their names."""
