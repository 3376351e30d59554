"""Records of sandboxes are found again; files damaged by a power cut are skipped."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from builderd.engine.oci.runtime.records import Exit, Heartbeat, Record, Records, make_end, make_report, moment
from builderd.linux.processes import Process
from builderd.sandboxes.model import EndCause, SandboxState


def record(name: str) -> Record:
    return Record(name, "builder", "disk", "crun", 0, "10.64.0.2", 8000, "boot")


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path)
    records.open()
    return records


def test_a_record_is_found_again(records: Records) -> None:
    records.save(record("a1"))
    assert list(records.all()) == [record("a1")]


def test_fields_of_a_later_version_are_ignored_and_kept(records: Records) -> None:
    records.save(replace(record("a1"), process=Process(7, 8)))
    file = records.folder("a1") / "record.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "process": {**stored["process"], "thread": 9}, "zone": {"name": "b"}}))
    [found] = records.all()
    assert found == replace(record("a1"), process=Process(7, 8))
    records.save(replace(found, stopping_at=5.0))
    assert json.loads(file.read_text()) == {**stored, "zone": {"name": "b"}, "stopping_at": 5.0}


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b'{"id": "b'])
def test_a_damaged_record_counts_as_none_and_goes(records: Records, content: bytes) -> None:
    for name in ("a1", "b2"):
        records.save(record(name))
    (records.folder("b2") / "record.json").write_bytes(content)
    assert list(records.all()) == [record("a1")]
    assert not records.folder("b2").exists()


def test_sweep_removes_leftovers_and_keeps_files_being_written(records: Records, tmp_path: Path) -> None:
    records.save(record("a1"))
    kept = {tmp_path / "sandboxes/a1", tmp_path / "sandboxes/a1/record.json", records.exits / "a1"}
    (records.exits / "a1").write_text("0")
    (records.exits / "a1.FRESH1").write_text("")
    (records.exits / "b2").write_text("0")
    left = (tmp_path / "sandboxes/a1/.record.json.0badcafe", records.exits / "a1.OLD123", records.exits / "c3")
    for file in left:
        file.write_text("")
        os.utime(file, (0, 0))
    records.folder("d4").mkdir()
    (records.folder("e5")).mkdir()
    (records.folder("e5") / "oom").touch()
    records.sweep()
    found = {path for folder in ("sandboxes", "exits") for path in (tmp_path / folder).rglob("*")}
    assert found == {*kept, records.exits / "a1.FRESH1", records.exits / "b2"}
    assert list(records.all()) == [record("a1")]


def test_the_unfinished_exit_file_of_a_killed_shim_goes_with_the_record(records: Records) -> None:
    for name in ("a1.KILLED", "b2.BEING1", "c3"):
        (records.exits / name).write_text("0")
    for name in ("a1", "c3", "d4"):
        records.remove(name)
    assert {file.name for file in records.exits.iterdir()} == {"b2.BEING1"}


RECORD = Record(
    id="ab12",
    owner="b",
    disk="d",
    runtime="crun",
    slot=3,
    ip="10.64.8.5",
    port=8000,
    boot="now",
    process=Process(100, 1),
    shim=Process(99, 1),
    started_at=1000.0,
)


def test_sandbox_that_was_not_started_is_incomplete() -> None:
    report = make_report(replace(RECORD, started_at=None), running=False, exit_=None, oom=None, boot="now")
    assert (report.state, report.ip, report.started_at) == (SandboxState.PARTIAL, None, None)


def test_a_frozen_one_has_its_address_still() -> None:
    record = replace(RECORD, frozen_at=1001.0, thawed_at=1000.5)
    report = make_report(record, running=True, frozen=True, exit_=None, oom=None, boot="now")
    assert (report.state, report.ip) == (SandboxState.FROZEN, "10.64.8.5")
    assert (report.frozen_at, report.thawed_at) == (moment(1001.0), moment(1000.5))


@pytest.mark.parametrize(
    ("oom", "reported"), [(EndCause.OUT_OF_MEMORY, True), (EndCause.HOST_OUT_OF_MEMORY, False), (None, False)]
)
def test_only_kills_at_the_own_limit_are_reported_of_a_running_one(oom: EndCause | None, reported: bool) -> None:
    assert make_report(RECORD, running=True, exit_=None, oom=oom, boot="now").out_of_memory is reported


OOM, HOST_OOM = EndCause.OUT_OF_MEMORY, EndCause.HOST_OUT_OF_MEMORY
STOPPED, EXITED, LOST = EndCause.STOPPED, EndCause.EXITED, EndCause.MONITOR_LOST
#: (stopping at, exit, kill for memory, boot, cause) by what happened.
ENDS: dict[str, tuple[float | None, Exit | None, EndCause | None, str, EndCause]] = {
    "by itself": (None, Exit(7, 2000), None, "now", EXITED),
    "a KILL from inside is no memory limit": (None, Exit(137, 2000), None, "now", EXITED),
    "for memory": (None, Exit(137, 2000), OOM, "now", OOM),
    "for the memory of the host": (None, Exit(137, 2000), HOST_OOM, "now", HOST_OOM),
    "for memory, by its parent's word": (None, Exit(1, 2000), OOM, "now", OOM),
    "well, though a worker was killed once": (None, Exit(0, 2000), OOM, "now", EXITED),
    "stopped": (1999.99, Exit(143, 2000), None, "now", STOPPED),
    "file times lag": (2000.01, Exit(143, 2000), None, "now", STOPPED),
    "before it was stopped": (2001, Exit(7, 2000), None, "now", EXITED),
    "its shim was killed": (None, None, None, "now", LOST),
    "memory or not": (None, None, OOM, "now", LOST),
    "machine restarted": (None, None, None, "later", EndCause.HOST_RESTARTED),
    "ended before the machine restarted": (None, Exit(7, 2000), None, "later", EXITED),
    "killed with its shim": (1, None, None, "now", STOPPED),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_causes(case: tuple[float | None, Exit | None, EndCause | None, str, EndCause]) -> None:
    stopping_at, exit_, oom, boot, cause = case
    end = make_end(replace(RECORD, stopping_at=stopping_at), exit_, oom, boot)
    assert (end.cause, end.exit_code) == (cause, exit_.code if exit_ else None)
    assert (end.at is None) == (exit_ is None)


def test_after_a_crash_of_the_machine_the_end_is_when_it_was_last_seen() -> None:
    end = make_end(replace(RECORD, seen_at=1500.5), None, None, "later")
    assert (end.cause, end.at) == (EndCause.HOST_RESTARTED, moment(1500.5))


def test_end_is_not_before_the_start() -> None:
    assert make_end(replace(RECORD, seen_at=999.5), None, None, "later").at == moment(1000.0)


@pytest.mark.parametrize(
    ("code", "at", "cause"),
    [
        (143, 1500.7, EndCause.HOST_RESTARTED),
        (137, 1499.0, EndCause.HOST_RESTARTED),
        (143, 1400.0, EndCause.EXITED),
        (0, 1500.7, EndCause.EXITED),
        (1, 1500.7, EndCause.EXITED),
    ],
)
def test_machine_shutdown_is_not_a_crash(code: int, at: float, cause: EndCause) -> None:
    end = make_end(replace(RECORD, seen_at=1500.5), Exit(code, at), None, "later")
    assert (end.cause, end.at) == (cause, moment(at))


def test_the_last_beat_is_found_by_the_next_service(tmp_path: Path) -> None:
    times = iter([1000.5, 2000.25])
    first = Heartbeat(tmp_path / "heartbeat", "boot-1", lambda: next(times))
    assert first.last() is None
    first.beat()
    first.beat()
    assert Heartbeat(tmp_path / "heartbeat", "boot-2", float).last() == ("boot-1", 2000.25)


@pytest.mark.parametrize("text", ["", "boot", "boot x", "boot 1 2"])
def test_damaged_heartbeat_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "heartbeat").write_text(text)
    assert Heartbeat(tmp_path / "heartbeat", "boot", float).last() is None
