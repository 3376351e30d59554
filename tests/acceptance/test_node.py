"""Node projects on the real parts: packages from a registry, in a layer below the app."""

from __future__ import annotations

import json

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.scenarios import run

pytestmark = pytest.mark.root

APP = """\
const http = require("http"), ms = require("ms");
http.createServer((_, answer) => answer.end(String(ms("2 days")))).listen(process.env.PORT, "0.0.0.0");
"""
PACKAGE = json.dumps({"dependencies": {"ms": "2.1.3"}, "scripts": {"postinstall": "touch /app/marker"}})


def test_node_packages_are_installed_once_and_imported(service: LiveService) -> None:
    files = {"main.js": APP, "package.json": PACKAGE, "Procfile": "web: node main.js\n"}
    with service.deployed("node", files, None) as data:
        assert service.visit(data).text == "172800000"
        assert run(service, data["uuid"], "ls -A /app; ls /node_modules") == (
            0,
            "Procfile\nmain.js\npackage.json\nms\n",
        )
        with service.deployed("node-again", files, None) as again:
            assert service.visit(again).text == "172800000"
            log = service.call("GET", f"/builders/{again['uuid']}/logs?stream=build").json()["data"]
            assert "reused" in log[-1]["text"]


def test_python_and_node_packages_share_one_layer(service: LiveService) -> None:
    project = "[project]\nname = 'app'\ndependencies = ['idna']\n"
    script = "import idna, subprocess; print(idna.encode('ö.de'), flush=True); subprocess.run(['node', 'main.js'])"
    files = {"main.js": APP, "package.json": PACKAGE, "pyproject.toml": project, "main.py": script}
    with service.deployed("both", files, "python3 main.py") as data:
        assert service.visit(data).text == "172800000"


def test_missing_node_package_shows_npms_message(service: LiveService) -> None:
    package = json.dumps({"dependencies": {"ms": "99.99.99"}})
    body = {"name": "no-such", "entrypoint": "node main.js", "files": {"main.js": APP, "package.json": package}}
    answer = service.call("POST", "/builders", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "install_failed")
    assert "No matching version found for ms@99.99.99" in answer.json()["message"]
    service.call("DELETE", f"/builders/{answer.json()['data']['uuid']}")
