"""What is written down of a sandbox is found again; what a power cut left of it stops nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.engines.oci.records import Record, Records


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


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b'{"id": "b'])
def test_a_damaged_record_counts_as_none_and_goes(records: Records, content: bytes) -> None:
    for name in ("a1", "b2"):
        records.save(record(name))
    (records.folder("b2") / "record.json").write_bytes(content)
    assert list(records.all()) == [record("a1")]
    assert not records.folder("b2").exists()
