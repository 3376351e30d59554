"""Secrets on the real parts: an app gets them, its neighbour does not, and nothing keeps them in clear text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.scenarios import run

pytestmark = pytest.mark.root

CANARY = "canary-9d41c7e0"
APP = {"main.py": TINY_APP}


def test_an_app_gets_its_secrets_and_nothing_keeps_them_in_clear_text(service: LiveService) -> None:
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

        rotated = subprocess.run(
            service.command("vault", "rotate"), env=service.environment(), capture_output=True, text=True, check=True
        )
        assert "1 secrets are sealed with the new key" in rotated.stdout
        service.call("POST", f"/builders/{uuid}/restart")
        assert run(service, uuid, 'printf %s "$API_KEY"') == (0, CANARY)

        for path in ("/credentials", f"/builders/{uuid}", f"/builders/{uuid}/logs?tail=1000"):
            assert CANARY not in service.call("GET", path).text
        assert CANARY not in service.log_file.read_text()
        assert _files_with(CANARY, service.data_dir) == []
    assert service.call("DELETE", "/credentials/zoho").status_code == 200


def test_strong_isolation_hands_them_over_as_well(service: LiveService) -> None:
    service.call("PUT", "/credentials/strong", json={"values": {"API_KEY": CANARY}})
    with service.deployed("strong", APP, "python3 main.py", credentials=["strong"], isolation="strong") as data:
        assert run(service, data["uuid"], "cat /run/credentials/strong/API_KEY") == (0, CANARY)
    assert service.call("DELETE", "/credentials/strong").status_code == 200


def _files_with(text: str, folder: Path) -> list[str]:
    """All below it, databases with their journals, disks and logs; what lies in the image by its mount."""
    found = subprocess.run(
        ["grep", "-rlaF", "--exclude=*.img", "--devices=skip", text, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split()
