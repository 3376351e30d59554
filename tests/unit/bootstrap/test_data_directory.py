"""The data directory: made for its owner alone, never taken from somebody else, and of one name over all restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.bootstrap.data_directory import IDENTITY_FILE, LOCK_FILE, identity, make
from builderd.domain.errors import InvalidState


def test_a_new_one_is_its_owners_alone(tmp_path: Path) -> None:
    make(tmp_path / "above/new")
    assert (tmp_path / "above/new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["lost+found", "builderd.toml", LOCK_FILE])
def test_empty_or_own_directory_is_used_and_closed_to_others(tmp_path: Path, name: str) -> None:
    """A directory has no database with PostgreSQL, and before the first start perhaps nothing but settings."""
    tmp_path.chmod(0o755)
    make(tmp_path)
    (tmp_path / name).touch()
    make(tmp_path)
    (tmp_path / "logs").mkdir()
    if name != "lost+found":
        make(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_one_with_other_things_in_it_is_refused_and_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "theirs").touch()
    with pytest.raises(InvalidState, match="such as theirs"):
        make(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_the_name_stays(tmp_path: Path) -> None:
    first = identity(tmp_path)
    assert first
    assert identity(tmp_path) == first


def test_empty_key_file_is_generated_again(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).touch()
    first = identity(tmp_path)
    assert first
    assert identity(tmp_path) == first
