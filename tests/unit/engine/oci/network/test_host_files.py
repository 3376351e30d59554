"""Files that sandboxes take from the host are written where they changed, and only there: the store may be full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.engine.oci.network import host_files
from builderd.engine.oci.network.host_files import write_host_files
from builderd.linux import atomic_files


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base")
    (base / "etc").mkdir()
    (base / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\napp:x:1000:1000::/app:/bin/bash\n")
    return base


@pytest.fixture
def no_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes, *, mode: int) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(atomic_files, "replace", refuse)


def test_files_are_made_for_all_to_read(tmp_path: Path, base: Path) -> None:
    write_host_files(tmp_path / "host", base)
    file = tmp_path / "host/etc/hosts"
    assert "localhost" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644
    assert file.parent.stat().st_mode & 0o777 == 0o755


def test_the_user_s_home_is_a_folder_beside_the_code(tmp_path: Path, base: Path) -> None:
    write_host_files(tmp_path, base)
    users = (tmp_path / "etc/passwd").read_text()
    assert users == "root:x:0:0:root:/root:/bin/bash\napp:x:1000:1000::/home/app:/bin/bash\n"
    assert list((tmp_path / "home/app").iterdir()) == []


def test_correct_file_is_not_rewritten(tmp_path: Path, base: Path, request: pytest.FixtureRequest) -> None:
    write_host_files(tmp_path, base)
    request.getfixturevalue("no_writes")
    write_host_files(tmp_path, base)


def test_full_store_keeps_the_previous_host_files(
    tmp_path: Path, base: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_host_files(tmp_path, base)
    before = (tmp_path / "etc/resolv.conf").read_text()
    monkeypatch.setattr(host_files, "resolv_conf", lambda: "nameserver 192.0.2.77\n")
    request.getfixturevalue("no_writes")
    write_host_files(tmp_path, base)
    assert (tmp_path / "etc/resolv.conf").read_text() == before


def test_programs_are_there_for_all_to_run(tmp_path: Path, base: Path) -> None:
    program = base / "uv"
    program.write_text("#!/bin/sh\necho one\n")
    for text in ("#!/bin/sh\necho one\n", "#!/bin/sh\necho two, longer\n"):
        program.write_text(text)
        write_host_files(tmp_path, base, [program])
        copy = tmp_path / "usr/local/bin/uv"
        assert (copy.read_text(), copy.stat().st_mode & 0o777) == (text, 0o755)
        before = copy.stat().st_ino
        write_host_files(tmp_path, base, [program])
        assert copy.stat().st_ino == before
    assert str((tmp_path / "usr/bin/python").readlink()) == "python3"
    assert sorted(path.name for path in (tmp_path / "usr/local/bin").iterdir()) == ["uv"]


@pytest.mark.usefixtures("no_writes")
def test_missing_host_files_on_a_full_store_fail(tmp_path: Path, base: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        write_host_files(tmp_path, base)
