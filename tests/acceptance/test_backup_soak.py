"""An app that writes to SQLite under load, backed up and restored again and again: never a broken or missing row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.scenarios import run
from tests.acceptance.test_backups import WRITER

pytestmark = [pytest.mark.root, pytest.mark.engines, pytest.mark.slow]

ROUNDS = int(os.environ.get("BUILDERD_BACKUP_ROUNDS", "50"))

#: A file beside the database that changes in each round, of which the app's user makes and checks the hash.
CHANGE = "head -c 2000000 /dev/urandom > blob-$(({0} % 5)) && sha256sum blob-* > hashes && sync . && cat hashes"
CHECK = "sha256sum --quiet -c hashes && cat hashes"


@pytest.fixture
def service(
    engine: OwnEngine | OnIncus, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[LiveService]:
    settings = {"BUILDERD_BACKUP__REPOSITORY": request.getfixturevalue("rest_on_incus").url} if engine.is_incus else {}
    with engine.running(tmp_path_factory.mktemp("s") / "data", **settings) as running:
        yield running


def test_every_restore_is_complete_and_consistent(service: LiveService) -> None:
    data = service.create("writer", WRITER)
    path = f"/builders/{data['uuid']}/backups"
    for number in range(ROUNDS):
        code, hashes = run(service, data["uuid"], CHANGE.format(number))
        assert code == 0, hashes
        before = _rows(service, data)
        backup = service.call("POST", path)
        assert backup.status_code == 201, backup.text
        after = _rows(service, data)
        assert run(service, data["uuid"], "head -c 1000000 /dev/urandom > blob-0; rm -f blob-1; echo x > stray")[0] == 0
        restored = service.call("POST", f"{path}/{backup.json()['data']['id']}/restore")
        assert restored.status_code == 200, restored.text
        assert run(service, data["uuid"], CHECK) == (0, hashes)
        assert run(service, data["uuid"], "test -e stray")[0] == 1
        assert _history(service, data, before, after), "the database is not of the backup's moment"
    assert len(service.call("GET", f"{path}?per_page=100").json()["data"]) >= 2


def _rows(service: LiveService, data: dict[str, Any]) -> int:
    """Return the number of rows in a database whose integrity check passes."""
    service.wait_served(data)
    verdict, rows = service.visit(data, "check").text.split()
    assert verdict == "ok"
    return int(rows)


def _history(service: LiveService, data: dict[str, Any], before: int, after: int) -> bool:
    """The app writes on from the restored state: it tells where it began."""
    _rows(service, data)
    began = int(service.visit(data, "began").text)
    return before <= began <= after
