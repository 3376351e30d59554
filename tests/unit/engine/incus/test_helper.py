"""The program of a helper has all modules that it needs; volumes are detached; folders come back as they were."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tests.unit.engine.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.engine.incus.builds import Program, packed, unpack
from builderd.engine.incus.helper import packed_program


def test_sent_modules_are_all_that_the_program_needs(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed_program())) as archive:
        archive.extractall(tmp_path)
    program = "builderd.engine.incus.helper_program"
    request = json.dumps({"task": "list_files", "volume": "none", "path": "", "skip": 0, "count": 1}).encode() + b"\n"
    # Isolated from installed packages, as in the instance.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from {program} import main; main()"
    done = subprocess.run([sys.executable, "-ISc", code], input=request, capture_output=True, check=True)
    assert json.loads(done.stdout)["error"] == "OSError"


async def test_volume_that_an_earlier_service_attached_is_detached_and_others_stay() -> None:
    incus = ScriptedIncus()
    helper = machine_on(incus).helper("node2")
    incus.has_instance(helper.name, volumes=["disk-1", "disk-2"])
    await helper.detach("disk-1")
    assert incus.attached(helper.name) == {"disk-2"}
    await helper.detach("disk-1")
    assert len(incus.changes) == 1


def test_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep/list").write_bytes(b"content")
    (source / "link").symlink_to("/etc/passwd")
    target.mkdir()
    folders = {"/work": source, "/cache": None}
    sent = packed(Program((), {}, "/", 1, user=1000, files={"/etc/hosts": b"x"}, folders=folders))
    with tarfile.open(fileobj=io.BytesIO(sent)) as tar:
        owners = {entry.name: entry.uid for entry in tar}
    assert owners == {"etc/hosts": 0, **dict.fromkeys(("work", "work/deep", "work/deep/list", "cache"), 1000)}
    unpack(io.BytesIO(sent), target)
    assert (target / "work/deep/list").read_bytes() == b"content"
    assert (target / "work/deep/list").stat().st_uid == os.getuid()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / "inside").mkdir()
    content.seek(0)
    with pytest.raises(tarfile.FilterError):
        unpack(content, tmp_path / "inside")
    assert not (tmp_path / "outside").exists()


def test_absolute_path_is_one_below_the_folder(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("/etc/outside"))
    content.seek(0)
    unpack(content, tmp_path)
    assert (tmp_path / "etc/outside").exists()
    assert not Path("/etc/outside").exists()


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    content.seek(0)
    unpack(content, tmp_path)
    assert list(tmp_path.iterdir()) == []
