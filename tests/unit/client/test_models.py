"""Schemas of the service as the client reads them: they tolerate new fields and words, and missing values."""

from __future__ import annotations

from datetime import UTC, datetime

from builderd.client import models
from builderd.client.models import lenient
from builderd.domain.backups import BackupStatus

BACKUP = {
    "id": "1",
    "builder": "2",
    "builder_name": "app",
    "kind": "scheduled",
    "status": "done",
    "version": 1,
    "created_at": "2026-01-31T12:00:00Z",
    "files": 1,
    "size_bytes": 1,
    "added_bytes": 1,
    "error": "",
    "fault": "",
}


def test_a_known_word_is_the_schemas_and_a_missing_value_is_null() -> None:
    backup = lenient(models.Backup).model_validate(BACKUP)
    assert isinstance(backup, models.Backup)
    assert backup.status is BackupStatus.DONE
    assert backup.finished_at is None
    assert backup.created_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert backup.model_dump(mode="json")["created_at"] == "2026-01-31T12:00:00Z"


def test_an_unknown_field_is_kept_and_an_unknown_word_is_text() -> None:
    backup = lenient(models.Backup).model_validate({**BACKUP, "status": "moved", "where": "elsewhere"})
    assert (backup.status, backup.model_extra) == ("moved", {"where": "elsewhere"})
    assert backup.model_dump(mode="json")["status"] == "moved"


def test_nested_results_are_read_in_the_same_way() -> None:
    part = {"ready": True, "message": "", "since": "today"}
    ready = lenient(models.Readiness).model_validate(
        {"database": part, "engine": part, "previews": part, "role": "observing"}
    )
    assert (ready.database.model_extra, ready.role) == ({"since": "today"}, "observing")
    check = {"name": "speed", "outcome": "odd", "message": "", "seconds": 1, "findings": []}
    qa = {"version": 1, "bundle_hash": "", "skipped": False, "gate": [check], "status": "none", "checks": []}
    found = lenient(models.Qa).model_validate({**qa, "screenshots": [], "note": "", "requested_by": ""})
    assert (found.gate[0].name, found.gate[0].outcome) == ("speed", "odd")


def test_fields_with_other_names_in_json_keep_them() -> None:
    answers = {"2xx": 1, "3xx": 0, "4xx": 0, "5xx": 0, "1xx": 2}
    read = lenient(models.Answers).model_validate(answers)
    assert read.ok == 1
    assert read.model_dump(mode="json") == answers
