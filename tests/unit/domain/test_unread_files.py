"""Files that are not read are named, each with what takes its place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from builderd.domain.unread_files import MAX_NAMED, UNREAD, unread_notes


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["app.py", "requirements.txt"], []),
        (["app.py", ".env"], [".env is not read"]),
        (["app.py", ".env.example"], []),
        (["app.py", "Pipfile", "requirements.txt"], ["Pipfile is not read"]),
        (["app.py", "Pipfile", "Pipfile.lock"], []),
        (["app.py", "pyproject.toml", "poetry.lock"], []),
        (["server.js", "package.json", "yarn.lock"], ["yarn.lock is not read"]),
        (["app.py", "backend/requirements.txt"], ["backend/requirements.txt is not read"]),
        (["app.py", "requirements.txt", "backend/requirements.txt"], []),
        (["app.py", "tests/requirements.txt", "node_modules/a/package.json"], []),
    ],
)
def test_unread_file_is_named(paths: Sequence[str], named: Sequence[str]) -> None:
    notes = unread_notes(paths)
    assert len(notes) == len(named)
    assert all(note.startswith(start) for note, start in zip(notes, named, strict=True))


def test_notes_are_few() -> None:
    assert len(unread_notes(UNREAD)) == MAX_NAMED
