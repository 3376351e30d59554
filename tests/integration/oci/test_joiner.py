"""The joining program: compiled once, and nothing is begun by a damaged document."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
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
        ["0", "1", "/bin/true", "0"],
        ["1", "/dev/null"],
        ["1", "/dev/null", "1", "/bin/true"],
        ["1", "/dev/null", "0", "0"],
        ["1", "/dev/null", "1", "/bin/true", "1"],
        ["1", "/dev/null", "1", "/bin/true", "0", "more"],
        ["1", "/dev/null", "2", "/bin/true", "0"],
        ["1", "/dev/null", "99999999999", "/bin/true", "0"],
        ["1", "/dev/null", "9" * 19, "/bin/true", "0"],
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


@pytest.mark.parametrize("at", range(6))
def test_before_its_report_is_in_place_it_writes_to_no_other_descriptor(program: Path, at: int) -> None:
    """Descriptor 3 may be a stream of somebody's by then."""
    numbers = ["2" if one != at else "x" for one in range(6)]
    done = subprocess.run(["/bin/sh", "-c", 'exec "$0" "$@" 3>&1', program, *numbers], capture_output=True, check=False)
    report = b"" if at == 3 else b"failed 22 read a number"
    assert (done.returncode, done.stdout, done.stderr) == (FAILED, b"", report)


def test_tracing_is_forbidden_again_between_another_user_and_the_last_capability() -> None:
    """The kernel allows it with another user where fs.suid_dumpable is 1; to set that here would change the machine."""
    body = joiner.SOURCE.read_text().partition("static void drop_rights")[2].partition("\n}\n")[0]
    calls = ("SETRESGID", "SETRESUID", "forbid_tracing()", "CAPSET")
    assert [body.count(call) for call in calls] == [1] * 4
    assert sorted(calls, key=body.index) == list(calls)


def test_it_is_compiled_once_and_kept(program: Path) -> None:
    inode = program.stat().st_ino
    assert ensure_joiner(program.parent.parent) == program
    assert program.stat().st_ino == inode
    assert (program.stat().st_mode & 0o7777, [one.name for one in program.parent.iterdir()]) == (0o755, [program.name])


def test_a_program_cut_anywhere_is_compiled_again(program: Path, tmp_path: Path) -> None:
    """A full disk does so; also within what its end without descriptors does not need."""
    whole = program.read_bytes()
    home = tmp_path / "host"
    made = ensure_joiner(home)
    assert made is not None
    for size in (0, 10, 100, 5000, len(whole) - 1000, len(whole) - 1):
        made.write_bytes(whole[:size])
        assert ensure_joiner(home) == made
        assert (made.read_bytes(), len(list(made.parent.iterdir()))) == (whole, 1)


@pytest.fixture(params=["start", "limit"])
def faulty(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a ``start.c`` in which one program writes to address 0, as a compiler's fault may do."""
    source = tmp_path / "faulty" / "start.c"
    source.parent.mkdir()
    shutil.copy(joiner.SOURCE.with_name("join.h"), source.parent)
    text = joiner.SOURCE.with_name("start.c").read_text()
    changed = re.sub(rf"\nvoid {request.param}\(.*\n", r"\g<0>  *(volatile char *)0 = 1;\n", text)
    assert changed != text
    source.write_text(changed)
    return source


def test_a_program_that_crashes_at_starting_or_limiting_is_not_used(
    tmp_path: Path, faulty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(joiner, "_START", faulty)
    assert ensure_joiner(tmp_path / "host") is None
    assert "ends with -11" in caplog.text
    assert list((tmp_path / "host" / "join").iterdir()) == []


def test_a_kept_program_that_crashes_at_starting_is_compiled_again(program: Path, tmp_path: Path, faulty: Path) -> None:
    made = ensure_joiner(tmp_path / "host")
    assert made is not None
    subprocess.run(
        [joiner.COMPILER, *joiner._OPTIONS, "-o", made, str(joiner.SOURCE), str(faulty)],
        check=True,
        capture_output=True,
    )
    assert ensure_joiner(tmp_path / "host") == made
    assert made.read_bytes() == program.read_bytes()


def make_compiler(folder: Path, cut: str) -> None:
    """Write a compiler that succeeds, whatever became of its output."""
    folder.mkdir()
    tcc = folder / joiner.COMPILER
    tcc.write_text(f'#!/bin/sh\n[ "$1" = -v ] && exec /usr/bin/tcc -v\n/usr/bin/tcc "$@"\n{cut} "$4"\n')
    tcc.chmod(0o755)


@pytest.mark.parametrize("size", [0, 100, 5000, 11_000])
def test_a_compiler_that_cuts_its_output_and_succeeds_makes_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    make_compiler(tmp_path / "bin", f"/usr/bin/truncate -s {size}")
    monkeypatch.setattr(joiner, "SEARCH_PATH", str(tmp_path / "bin"))
    assert ensure_joiner(tmp_path / "host") is None
    assert "joining program not compiled" in caplog.text
    assert list((tmp_path / "host" / "join").iterdir()) == []


def test_a_file_that_is_not_roots_alone_is_never_executed(program: Path, tmp_path: Path) -> None:
    home, told = tmp_path / "host", tmp_path / "told"
    made = ensure_joiner(home)
    assert made is not None
    foreign = tmp_path / "foreign"
    foreign.write_text(f"#!/bin/sh\ntouch {told}\nexit {FAILED}\n")
    foreign.chmod(0o755)
    for owner, mode in ((1000, 0o755), (0, 0o775), (0, 0o757)):
        made.write_bytes(foreign.read_bytes())
        os.chown(made, owner, 0)
        made.chmod(mode)
        assert ensure_joiner(home) == made
        found = made.lstat()
        assert (found.st_uid, found.st_mode & 0o7777, made.read_bytes()) == (0, 0o755, program.read_bytes())
    made.unlink()
    made.symlink_to(foreign)
    assert ensure_joiner(home) == made
    assert not made.is_symlink()
    assert not told.exists()


def test_another_compiler_or_other_options_make_another_program(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = program.parent.parent
    make_compiler(tmp_path / "bin", ":")
    (tmp_path / "bin" / "tcc").write_text((tmp_path / "bin" / "tcc").read_text().replace("tcc -v", "tcc -vv"))
    monkeypatch.setattr(joiner, "SEARCH_PATH", str(tmp_path / "bin"))
    of_another = ensure_joiner(home)
    monkeypatch.undo()
    monkeypatch.setattr(joiner, "_OPTIONS", (*joiner._OPTIONS, "-Wall"))
    with_options = ensure_joiner(home)
    assert len({program, of_another, with_options} - {None}) == 3
    for other in (of_another, with_options):
        assert other is not None
        other.unlink()


def test_programs_that_no_service_began_with_for_a_month_are_removed(tmp_path: Path) -> None:
    made = ensure_joiner(tmp_path)
    assert made is not None
    kept, old, left = (made.parent / name for name in ("kept", "old", ".left"))
    month = time.time() - 31 * 86_400
    for file in (kept, old, left):
        file.write_bytes(b"")
    for file in (made, old, left):
        os.utime(file, (month, month))
    assert ensure_joiner(tmp_path) == made
    assert set(made.parent.iterdir()) == {made, kept}
    assert made.stat().st_mtime > month


def test_a_home_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert ensure_joiner(tmp_path / "file") is None
    assert "joining program not compiled" in caplog.text


def test_words_of_the_compiler_that_are_no_text_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "join.c"
    source.write_bytes(b"int \xff\xfe;")
    monkeypatch.setattr(joiner, "SOURCE", source)
    assert ensure_joiner(tmp_path / "host") is None
    assert "joining program not compiled" in caplog.text


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


def test_a_document_is_the_same_in_every_locale_of_the_service() -> None:
    script = (
        "from builderd.adapters.engines.oci.runtime.joined import encode\n"
        r"print(encode((1,), '/\xe4', [], ['\u2028', '\udcff'], []))"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(sys.path), "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**env, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == repr(encode((1,), "/\xe4", [], ["\u2028", "\udcff"], []))
    assert "xe2\\x80\\xa8" in done.stdout


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_text_that_no_program_can_be_given_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        encode((1,), "/", [], ["/bin/sh", text], [])
    with pytest.raises(ValueError):
        encode((1,), "/", [], ["/bin/sh"], [f"A={text}"])
    assert encode((1, "f"), "/", [], ["a\udcff"], ["A="]) == b"1\0f\0/\0" + b"0\0" + b"1\0a\xff\0" + b"1\0A=\0"
