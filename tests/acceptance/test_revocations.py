"""A leaked API token, revoked by the API and on the machine: what it made lets nobody in any more."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.acceptance.live_service import PATIENCE, LiveService
from tests.acceptance.ssh_box import APP, Box

from builderd.cli.group import builderd

pytestmark = [pytest.mark.root, pytest.mark.engines]


def revoke(service: LiveService, token_id: str, *, on_the_machine: bool) -> str:
    """Revoke it; return what the answer says."""
    if not on_the_machine:
        admin = service.make_token("acme", "--scope", "admin")
        return service.call("DELETE", f"/tokens/{token_id}", token=admin).text
    # In a process of its own in use, beside the service: here it saves a start of Python.
    words = service.words("token", "revoke", "--tenant", "acme", token_id)
    return CliRunner().invoke(builderd, words, env=service.environment(), catch_exceptions=False).stdout


@pytest.mark.parametrize("on_the_machine", [False, True], ids=["by the API", "on the machine"])
def test_revoked_token_takes_its_link_and_its_login_with_it(
    service: LiveService, tmp_path: Path, on_the_machine: bool
) -> None:
    leaked = service.make_token("acme", "--scope", "admin", "--name", "leaked")
    token_id = service.call("GET", "/tokens/current", token=leaked).json()["data"]["id"]
    with service.deployed("leak", APP, "python3 main.py", visibility="private") as data:
        links = f"/builders/{data['uuid']}/preview-links"
        url = service.call("POST", links, token=leaked, json={}).json()["data"]["url"]
        guest = {"X-Service-Token": url.partition("?service_token=")[2]}
        assert service.visit(data, headers=guest).status_code == 200
        box = Box(service, data, tmp_path)
        box.grant = service.call("POST", f"/builders/{box.uuid}/ssh", token=leaked, json={}).json()["data"]
        command = ["ssh", *box.options, "-p", box.port, box.target, "echo begun; exec sleep 1234"]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"

        said = revoke(service, token_id, on_the_machine=on_the_machine)
        assert "ssh" in said
        assert "preview_link" in said
        client.communicate(timeout=PATIENCE)
        assert client.returncode == 255
        deadline = time.monotonic() + PATIENCE
        while (status := service.visit(data, headers=guest).status_code) != 401 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert status == 401
        assert box.run("id").returncode == 255
        owner = {"X-Service-Token": service.builder(box.uuid)["service_token"]}
        assert service.visit(data, headers=owner).status_code == 200
