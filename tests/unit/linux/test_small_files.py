"""Small files are read whole, and a missing one is not an empty one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.descriptors import held_by

from builderd.linux.json_files import read_if_there, read_small


@pytest.mark.parametrize("text", ["", "one\n", "ü" * 100_000])
def test_small_file_is_read_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert read_small(tmp_path / "file") == text
    assert read_if_there(f"{tmp_path}/file") == text


def test_missing_file_is_none_and_other_errors_raise(tmp_path: Path) -> None:
    assert read_if_there(tmp_path / "file") is None
    with pytest.raises(IsADirectoryError):
        read_if_there(tmp_path)
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_if_there(tmp_path / "file")
    assert not [one for one in held_by("self") if str(tmp_path) in one]
