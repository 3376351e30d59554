"""Spares are taken from the service's own folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.linux.spare_files import COUNT, FOLDER, make_spares, take_spare


def test_spare_of_a_folder_above_becomes_the_file(tmp_path: Path) -> None:
    make_spares(tmp_path)
    (tmp_path / "records").mkdir()
    assert take_spare(tmp_path / "records" / "new")
    assert (tmp_path / "records" / "new").is_file()
    assert len(list((tmp_path / FOLDER).iterdir())) == COUNT - 1


@pytest.mark.parametrize("kind", ["writable by others", "a link"])
def test_spare_in_a_folder_that_others_can_write_to_is_not_taken(tmp_path: Path, kind: str) -> None:
    stranger, data_dir = tmp_path / "stranger", tmp_path / "data"
    stranger.mkdir()
    data_dir.mkdir()
    (stranger / "kept-open").write_bytes(bytes(100))
    if kind == "a link":
        (tmp_path / FOLDER).symlink_to(stranger)
    else:
        stranger.rename(tmp_path / FOLDER)
        (tmp_path / FOLDER).chmod(0o777)
    assert not take_spare(data_dir / "vault.key")
    assert not (data_dir / "vault.key").exists()
