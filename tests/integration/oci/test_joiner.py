"""The joining program: compiled once, and nothing is begun by a damaged document."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import joiner
from builderd.adapters.engines.oci.runtime.join import FAILED, start_joining
from builderd.adapters.engines.oci.runtime.joined import _in_memory, encode
from builderd.adapters.engines.oci.runtime.joiner import ensure_joiner
from builderd.linux.processes import find_process

pytestmark = pytest.mark.root

WHOLE = ["1", "2", "500", "1024", "1000", "/filter", "/app", "1", "/group", "2", "/bin/sh", "-c", "1", "A=b"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = ensure_joiner(tmp_path_factory.mktemp("host"))
    assert program is not None
    return program


def join(program: Path, document: bytes) -> tuple[bytes, bytes, int]:
    """Return the report, the pid that was written, and the exit code."""
    (report, write), (told, tell) = os.pipe(), os.pipe()
    streams = [os.open("/dev/null", os.O_RDWR) for _ in range(3)]
    memory = _in_memory(document)
    pid = start_joining(str(program), [*streams, write, memory], told, tell)
    for descriptor in (*streams, write, memory, tell):
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    said = os.read(report, 4096), os.read(told, 4096)
    os.close(report)
    os.close(told)
    return *said, os.waitstatus_to_exitcode(status)


def text_of(texts: Sequence[str]) -> bytes:
    return b"".join(text.encode() + b"\0" for text in texts)


def changed(at: int, *texts: str) -> bytes:
    return text_of([*WHOLE[:at], *texts, *WHOLE[at + 1 :]])


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Numbers and files of a document up to its folder, all of which are there."""
    process = find_process(os.getpid())
    assert process
    (tmp_path / "filter").write_bytes(bytes(8))
    score = Path("/proc/self/oom_score_adj").read_text().strip()
    return [str(process.pid), str(process.started), score, "1024", "1000", str(tmp_path / "filter"), "/"]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\0",
        b"\0" * 100,
        b"1",
        text_of(WHOLE)[:-1],
        text_of(WHOLE[:1]),
        changed(0, "x"),
        changed(0, "-1"),
        changed(0, ""),
        changed(0, "9" * 30),
        changed(1, "0x2"),
        # Its process id differs between the workers that collect this test.
        pytest.param(changed(0, str(os.getpid())), id="the process id of the test itself"),
    ],
)
def test_a_damaged_beginning_is_a_fault(program: Path, document: bytes) -> None:
    report, told, status = join(program, document)
    assert (told, status) == (b"", FAILED)
    assert report.startswith((b"failed ", b"ended")), report


@pytest.mark.parametrize(
    "lists",
    [
        [],
        ["0"],
        ["0", "1", "/bin/true"],
        ["0", "0", "0"],
        ["0", "1", "/bin/true", "1"],
        ["0", "1", "/bin/true", "0", "more"],
        ["0", "2", "/bin/true", "0"],
        ["0", "99999999999", "/bin/true", "0"],
        ["0", "9" * 19, "/bin/true", "0"],
        ["1", "/nowhere", "1", "/bin/true", "0"],
        [str(200), *["/dev/null"] * 200, "1", "/bin/true", "0"],
    ],
)
def test_damaged_lists_are_a_fault(program: Path, own: list[str], lists: list[str]) -> None:
    report, told, status = join(program, text_of([*own, *lists]))
    assert (told, status) == (b"", FAILED)
    assert report.startswith((b"failed 22 read", b"ended", b"failed 22 open")), report


@pytest.mark.parametrize("size", [0, 7, 4096 * 8 + 8])
def test_a_filter_that_is_empty_cut_or_too_long_is_a_fault(program: Path, own: list[str], size: int) -> None:
    Path(own[5]).write_bytes(bytes(size))
    report, told, status = join(program, text_of([*own, "0", "1", "/bin/true", "0"]))
    assert (report, told, status) == (f"failed 0 {own[5]} holds no filter".encode(), b"", FAILED)


def test_a_long_path_of_a_filter_does_not_overflow_the_report(program: Path, own: list[str]) -> None:
    folder = Path(own[5]).parent / ("a" * 200)
    folder.mkdir()
    own[5] = str(Path(own[5]).rename(folder / ("b" * 200)))
    Path(own[5]).write_bytes(b"")
    report, told, status = join(program, text_of([*own, "0", "1", "/bin/true", "0"]))
    assert (report, told, status) == (b"failed 0  holds no filter", b"", FAILED)


def test_without_its_descriptors_it_ends(program: Path) -> None:
    assert subprocess.run([program], check=False).returncode == FAILED
    assert subprocess.run([program, *["0"] * 7], check=False).returncode == FAILED


def test_it_is_compiled_once_and_kept(program: Path) -> None:
    inode = program.stat().st_ino
    assert ensure_joiner(program.parent.parent) == program
    assert program.stat().st_ino == inode
    assert (program.stat().st_mode & 0o7777, [one.name for one in program.parent.iterdir()]) == (0o755, [program.name])


def test_without_the_compiler_or_on_another_machine_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joiner, "SEARCH_PATH", str(tmp_path))
    assert ensure_joiner(tmp_path) is None
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert ensure_joiner(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failed_compilation_is_logged_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "join.c"
    source.write_text("no C")
    monkeypatch.setattr(joiner, "SOURCE", source)
    with caplog.at_level(logging.WARNING):
        assert ensure_joiner(tmp_path / "host") is None
    assert "joining program not compiled" in caplog.text
    assert list((tmp_path / "host" / "join").iterdir()) == []


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_text_that_no_program_can_be_given_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        encode((1,), "/", [], ["/bin/sh", text], [])
    with pytest.raises(ValueError):
        encode((1,), "/", [], ["/bin/sh"], [f"A={text}"])
    assert encode((1, "f"), "/", [], ["a\udcff"], ["A="]) == b"1\0f\0/\0" + b"0\0" + b"1\0a\xff\0" + b"1\0A=\0"
