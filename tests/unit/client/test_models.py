"""Schemas of the service as the client reads them: they tolerate new fields and words, and missing values."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

from builderd.backups.model import BackupStatus
from builderd.client import models
from builderd.client.models import lenient

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


#: Other packages that the client imports, with those that httpx2 and pydantic bring.
FOREIGN = {
    "annotated_types",
    "anyio",
    "click",
    "h11",
    "httpcore2",
    "httpx2",
    "idna",
    "platformdirs",
    "pydantic",
    "pydantic_core",
    "truststore",
    "typing_extensions",
    "typing_inspection",
    "wsproto",
}
#: Modules of nouns: the words of the schemas.
MODELS = {"model", "diffs", "failures"}
#: Detection, and the files that a command runs, which the command line and the service share.
MODELS |= {"detection", "detect", "entrypoints", "modules", "node", "project", "python", "requested"}
#: Other parts of this package.
OWN = (
    "builderd.cli.apps",
    "builderd.cli.group",
    "builderd.cli.commands",
    "builderd.cli.group",
    "builderd.client",
    "builderd.core",
    "builderd.mcp",
    "builderd.schemas",
)  # the schemas of the results, with the domain's words; mcp.agent_configs, for `builderd mcp`

PROGRAM = """
import importlib, pkgutil, sys
before = set(sys.modules)
import builderd.cli.apps, builderd.client._async, builderd.client._sync, builderd.cli.group
for package in (builderd.client, builderd.client._async, builderd.client._sync, builderd.cli.apps):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.ispkg:
            importlib.import_module(module.name)
print(*sorted(set(sys.modules) - before))
"""


def imported() -> set[str]:
    """Return the modules that all modules of the client and its commands import, in an interpreter of their own."""
    done = subprocess.run([sys.executable, "-S", "-c", _with_path()], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def _with_path() -> str:
    return f"import sys; sys.path[:] = {sys.path!r}\n{PROGRAM}"


def test_the_client_imports_only_these_modules() -> None:
    modules = imported()
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"builderd"}
    assert {name for name in tops if not name.startswith("_sysconfigdata")} <= FOREIGN
    own = {name for name in modules if name.startswith("builderd.") and name != "builderd.cli"}
    others = {name for name in own if not name.startswith(OWN) and name.count(".") > 1}
    assert {name.rpartition(".")[2] for name in others} <= MODELS
