"""Records of sandboxes are found again; files damaged by a power cut are skipped."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime.records import Record, Records
from builderd.linux.processes import Process


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
    later = {**stored, "process": {**stored["process"], "thread": 9}, "zone": {"name": "b"}}
    file.write_text(json.dumps(later))
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


def test_the_unfinished_exit_file_of_a_killed_shim_goes(records: Records) -> None:
    for name in ("a1.KILLED", "b2.BEING1", "c3.OTHER1", "c3"):
        (records.exits / name).write_text("0")
    for name in ("a1", "c3", "d4"):
        records.remove_unfinished_exit(name)
    assert {file.name for file in records.exits.iterdir()} == {"b2.BEING1", "c3.OTHER1", "c3"}
