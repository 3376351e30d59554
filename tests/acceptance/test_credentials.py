"""Secrets on the real parts: an app gets them, its neighbour does not, and nothing keeps them in clear text."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

import pytest
from tests.acceptance.incus_service import ask_incus, is_on_incus
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine, files_with
from tests.acceptance.scenarios import run

pytestmark = [pytest.mark.root, pytest.mark.engines]

CANARY = "canary-9d41c7e0"
APP = {"main.py": TINY_APP}


def test_app_gets_credentials_and_no_file_has_them_in_clear_text(service: LiveService) -> None:
    stored = service.call("PUT", "/credentials/zoho", json={"values": {"API_KEY": CANARY}})
    assert stored.status_code == 201, stored.text
    with service.deployed("secretive", APP, "python3 main.py", credentials=["zoho"]) as data:
        uuid = data["uuid"]
        assert run(service, uuid, 'printf %s "$API_KEY"') == (0, CANARY)
        assert run(service, uuid, "cat /run/credentials/zoho/API_KEY") == (0, CANARY)
        assert run(service, uuid, "stat -c '%a %U' /run/credentials /run/credentials/zoho/API_KEY")[1].split() == [
            *("500", "app"),
            *("400", "app"),
        ]
        assert run(service, uuid, "echo x > /run/credentials/zoho/API_KEY")[0] != 0
        with service.deployed("nosy", APP, "python3 main.py") as other:
            assert run(service, other["uuid"], "env; cat /run/credentials/*/*")[1].count(CANARY) == 0
        service.call("POST", f"/builders/{uuid}/restart")

        rotated = service.invoke("vault", "rotate").stdout
        # The credential, and the key of each tenant's backups once that is made.
        assert re.search(r"^[1-9]\d* secrets are sealed with the new key", rotated, re.MULTILINE), rotated
        service.call("POST", f"/builders/{uuid}/restart")
        assert run(service, uuid, 'printf %s "$API_KEY"') == (0, CANARY)

        for path in ("/credentials", f"/builders/{uuid}", f"/builders/{uuid}/logs?tail=1000"):
            assert CANARY not in service.call("GET", path).text
        assert CANARY not in service.log_file.read_text()
        assert files_with(CANARY, service.data_dir) == []
        if is_on_incus(service):
            assert CANARY not in json.dumps(ask_incus(service, "instances?recursion=2"))
    assert service.call("DELETE", "/credentials/zoho").status_code == 200


def test_app_gets_credentials_under_strong_isolation(service: LiveService) -> None:
    service.call("PUT", "/credentials/strong", json={"values": {"API_KEY": CANARY}})
    with service.deployed("strong", APP, "python3 main.py", credentials=["strong"], isolation="strong") as data:
        assert run(service, data["uuid"], "cat /run/credentials/strong/API_KEY") == (0, CANARY)
    assert service.call("DELETE", "/credentials/strong").status_code == 200


#: Exits with what it was given, as careless apps do not, and says nothing.
BROKEN = {"main.py": "import os, sys; assert os.environ['API_KEY']; sys.exit(3)"}


def test_no_answer_and_no_backup_contains_a_secret(
    engine: OwnEngine | OnIncus, service: LiveService, tmp_path: Path
) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    told = [service.call("PUT", "/credentials/told", json={"values": {"API_KEY": canary}})]
    for values in (
        {"BAD NAME": canary},
        {"API_KEY": [canary]},
        {"API_KEY": f"{canary}\0"},
        {"API_KEY": canary, "B": 1},
    ):
        refused = service.call("PUT", "/credentials/told", json={"values": values})
        assert refused.status_code == 422, refused.text
        told.append(refused)
    failing = {"name": "failing", "entrypoint": "python3 main.py", "files": BROKEN, "credentials": ["told"]}
    failed = service.call("POST", "/builders", json=failing)
    assert failed.json()["code"] == "start_failed", failed.text
    told.append(failed)
    with service.deployed("telling", APP, "python3 main.py", credentials=["told"]) as data:
        path = f"/builders/{data['uuid']}"
        told.append(service.call("POST", f"{path}/backups"))
        assert told[-1].status_code == 201, told[-1].text
        told.append(service.call("POST", f"{path}/stop"))
        told += [
            service.call("GET", f"{path}/{noun}")
            for noun in ("qa", "events", "versions", "backups", "metrics", "files")
        ]
        told += [
            service.call("GET", f"/{noun}") for noun in ("events?per_page=100", "builders", "credentials", "backups")
        ]
        told.append(service.call("DELETE", "/credentials/told"))
        assert told[-1].status_code == 409
        kept = tmp_path / "state"
        said = service.invoke("backup", "--without-keys", str(kept)).output
        for folder in (service.data_dir, kept):
            assert files_with(canary, folder) == []
        assert engine.disk_files_with(service, canary) == []
    assert not [answer.url for answer in told if canary in answer.text]
    assert canary not in service.log_file.read_text() + said
    service.call("DELETE", f"/builders/{failed.json()['data']['uuid']}")
    assert service.call("DELETE", "/credentials/told").status_code == 200
