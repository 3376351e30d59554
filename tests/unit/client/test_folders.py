"""Folders: ignore rules as git has them, and forms in which code is sent."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import httpx2
import pytest
from tests.fakes.uploads import FakeUploads
from tests.threaded_service import Running

from builderd import Builderd
from builderd.client import folders
from builderd.client._sync import uploads
from builderd.client.errors import NoAnswer, Unavailable
from builderd.client.folders import encoded, read_folder
from builderd.client.logs import LogCursor
from builderd.client.models import LogLine

FILES = """a.py b.pyc build/x build/keep/y docs/a.md docs/deep/b.md logs/x.log logs/keep.log deep/logs/y.log tmp/a.txt
 deep/tmp/b.txt only/root.txt deep/only/root.txt x[1].txt sp ace.txt deep/.hidden deep/c.py foo/bar/baz foo/q/bar/baz
 abc/1 abd/1 #hash !bang deep/er/secret.key""".replace("sp ace", "sp_ace").split()
RULES = """# comment
*.pyc
build/*
!build/keep
logs/*.log
!logs/keep.log
/tmp
only/root.txt
docs/**/b.md
foo/**/baz
ab[!d]/
\\#hash
\\!bang
**/er
"""


def make(root: Path, names: list[str]) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def sent(root: Path) -> set[str]:
    return {file.path for file in read_folder(root).files}


def test_gitignore_means_what_it_means_to_git(tmp_path: Path) -> None:
    make(tmp_path, FILES)
    (tmp_path / ".gitignore").write_text(RULES)
    (tmp_path / "deep/.gitignore").write_text("*.txt\n/c.py\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "-z"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert sent(tmp_path) == set(listed.stdout.strip("\0").split("\0"))


def test_the_own_file_decides_before_git(tmp_path: Path) -> None:
    make(tmp_path, ["a.log", "b.log", "c.txt"])
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / ".builderdignore").write_text("!a.log\nc.txt\n")
    folder = read_folder(tmp_path)
    assert {file.path for file in folder.files} == {".gitignore", ".builderdignore", "a.log"}
    reasons = {one.path: one.rule for one in folder.left_out}
    assert reasons == {"b.log": ".gitignore: *.log", "c.txt": ".builderdignore: c.txt"}


def test_the_env_file_is_sent_although_rules_leave_it_out(tmp_path: Path) -> None:
    make(tmp_path, ["a.py", ".env", "deep/.env"])
    (tmp_path / ".gitignore").write_text(".env\n")
    folder = read_folder(tmp_path, ["*.env"], ".env")
    assert {file.path for file in folder.files} == {"a.py", ".env", ".gitignore"}


def test_some_folders_are_left_out_whatever_the_rules_say(tmp_path: Path) -> None:
    make(tmp_path, [".git/config", "node_modules/x/y", "deep/.venv/z", "a"])
    (tmp_path / ".builderdignore").write_text("!.git\n!node_modules\n")
    (tmp_path / "link").symlink_to("/etc/passwd")
    folder = read_folder(tmp_path)
    assert {file.path for file in folder.files} == {".builderdignore", "a"}
    assert {one.path: one.rule for one in folder.left_out} == {
        ".git/": "always: .git",
        "node_modules/": "always: node_modules",
        "deep/.venv/": "always: .venv",
        "link": "a symbolic link",
    }


def test_text_is_sent_as_text_and_the_rest_as_base64() -> None:
    assert encoded(b"a") == "a"
    assert encoded("a", executable=True) == {"content": "a", "executable": True}
    assert encoded(b"\xff") == {"content": base64.b64encode(b"\xff").decode(), "encoding": "base64"}


def test_the_same_code_has_the_same_archive_and_bundle(tmp_path: Path) -> None:
    packed = []
    for name in ("one", "two"):
        make(tmp_path / name, ["a", "b/c"])
        (tmp_path / name / "a").chmod(0o755)
        out = io.BytesIO()
        folder = read_folder(tmp_path / name)
        folder.pack(out)
        packed.append((out.getvalue(), folder.bundle))
    assert packed[0] == packed[1]
    with tarfile.open(fileobj=io.BytesIO(packed[0][0])) as archive:
        assert {member.name: member.mode for member in archive} == {"code/a": 0o755, "code/b/c": 0o644}
    (tmp_path / "two/a").chmod(0o644)
    assert read_folder(tmp_path / "two").bundle != packed[1][1]


def test_a_large_folder_is_uploaded(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "JSON_BYTES", 1000)
    make(tmp_path, ["main.py", "data/x"])
    (tmp_path / "data/big").write_bytes(bytes(3_000_000))
    seen: list[tuple[int, int]] = []
    with Builderd(running.url, running.service.write) as client:
        client.deploy(tmp_path, "big", entrypoint="python3 main.py", on_progress=lambda *now: seen.append(now))
    assert seen[-1][0] == seen[-1][1]
    (bundle,) = running.service.bundles.stored.values()
    assert len(bundle.files) == 3


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError):
        read_folder(tmp_path / "a")


def test_cursor_distinguishes_new_lines_from_seen_ones() -> None:
    def line(second: int, text: str) -> LogLine:
        return LogLine.model_validate(
            {"time": f"2026-01-31T12:00:0{second}Z", "stream": "stdout", "version": 1, "text": text}
        )

    a, b, c, d = line(1, "a"), line(1, "b"), line(1, "c"), line(2, "d")
    cursor = LogCursor()
    assert cursor.new_of([a, b]) == [a, b]
    assert cursor.new_of([a, b]) == []
    assert cursor.new_of([a, b, c]) == [c]
    assert cursor.new_of([a, b, c, d]) == [d]
    assert cursor.new_of([]) == []
    assert cursor.new_of([d]) == []


ARCHIVE = Random(1).randbytes(500_000)


class TakingOver(httpx2.HTTPTransport):
    """Cuts the first part off; refuses the next calls, as a standby does; then calls ``over``, and all is answered."""

    def __init__(self, over: Callable[[], None], refused: int = 3) -> None:
        super().__init__()
        self._over, self._refused = over, refused
        self.parts: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PUT":
            self.parts.append(request.headers["content-range"])
            if len(self.parts) == 1:
                request.stream = _Cut(request.stream)
                return super().handle_request(request)
        if self.parts and self._refused:
            self._refused -= 1
            if not self._refused:
                self._over()
            body = {"message": "Another service takes over.", "code": "engine_unavailable", "errors": {}}
            return httpx2.Response(503, headers={"Retry-After": "1"}, json=body, request=request)
        return super().handle_request(request)


class _Cut(httpx2.SyncByteStream):
    def __init__(self, stream: object) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        for piece in self._stream:  # type: ignore[attr-defined]
            yield piece
            sent += len(piece)
            if sent >= 300_000:
                raise httpx2.WriteError("the service was killed")


@pytest.fixture(autouse=True)
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(uploads, "sleep", lambda _: None)


def stored(running: Running) -> FakeUploads:
    found = running.service.application.uploads
    assert isinstance(found, FakeUploads)
    return found


@pytest.mark.parametrize("kept", [True, False])
def test_upload_goes_on_or_begins_again_at_the_service_that_takes_over(running: Running, kept: bool) -> None:
    def over() -> None:
        # The request that was cut off has begun there, and ended.
        while stored(running)._writing or not any(stored(running).stored.values()):
            time.sleep(0.01)
        if not kept:
            stored(running).stored.clear()

    transport = TakingOver(over)
    with Builderd(running.url, running.service.write, transport=transport, max_retries=0) as client:
        upload = client.uploads.send(io.BytesIO(ARCHIVE))
    starts = [int(part.removeprefix("bytes ").partition("-")[0]) for part in transport.parts]
    assert starts[0] == 0
    assert (starts[-1] > 0) is kept
    (content,) = stored(running).stored.values()
    assert hashlib.sha256(content).digest() == hashlib.sha256(ARCHIVE).digest()
    assert upload in stored(running).stored


def test_upload_is_given_up_where_no_service_takes_over(running: Running) -> None:
    transport = TakingOver(lambda: None, refused=10_000)
    with Builderd(running.url, running.service.write, transport=transport, max_retries=0) as client:
        with pytest.raises((NoAnswer, Unavailable)):
            client.uploads.send(io.BytesIO(ARCHIVE))
    assert transport._refused >= 10_000 - uploads.ATTEMPTS
