"""Folders that go to another member and come back: content and modes are kept, nothing leads out of the folder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from builderd.adapters.engines.incus.builds import packed_folder, unpack


def test_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep/list").write_bytes(b"content")
    (source / "link").symlink_to("/etc/passwd")
    target.mkdir()
    packed = packed_folder(source, "/work", 1000)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert {(entry.name, entry.uid) for entry in tar} == {
            ("work", 1000),
            ("work/deep", 1000),
            ("work/deep/list", 1000),
        }
    unpack(io.BytesIO(packed), target)
    assert (target / "work/deep/list").read_bytes() == b"content"
    assert (target / "work/deep/list").stat().st_uid == os.getuid()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / "inside").mkdir()
    packed.seek(0)
    with pytest.raises(tarfile.FilterError):
        unpack(packed, tmp_path / "inside")
    assert not (tmp_path / "outside").exists()


def test_absolute_path_is_one_below_the_folder(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("/etc/outside"))
    packed.seek(0)
    unpack(packed, tmp_path)
    assert (tmp_path / "etc/outside").exists()
    assert not Path("/etc/outside").exists()


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    packed.seek(0)
    unpack(packed, tmp_path)
    assert list(tmp_path.iterdir()) == []
