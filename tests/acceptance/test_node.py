"""Node projects on the real parts: packages from a registry, in a layer below the app."""

from __future__ import annotations

import json

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.scenarios import run

pytestmark = [pytest.mark.root, pytest.mark.engines]

APP = """\
const http = require("http"), ms = require("ms");
http.createServer((_, answer) => answer.end(String(ms("2 days")))).listen(process.env.PORT, "0.0.0.0");
"""
PACKAGE = json.dumps({"dependencies": {"ms": "2.1.3"}, "scripts": {"postinstall": "touch /app/marker"}})


@pytest.mark.slow
def test_node_packages_are_installed_once_and_imported(service: LiveService) -> None:
    files = {"main.js": APP, "package.json": PACKAGE, "Procfile": "web: node main.js\n"}
    with service.deployed("node", files, None) as data:
        assert service.visit(data).text == "172800000"
        assert run(service, data["uuid"], "ls -A /app; ls /node_modules") == (
            0,
            "Procfile\nmain.js\nnode_modules\npackage.json\nms\n",
        )
        with service.deployed("node-again", files, None) as again:
            assert service.visit(again).text == "172800000"
            log = service.call("GET", f"/builders/{again['uuid']}/logs?stream=build").json()["data"]
            assert "reused" in log[-1]["text"]


def test_project_is_built_once_and_its_next_version_again(service: LiveService) -> None:
    script = 'require("fs").mkdirSync("dist"); require("fs").writeFileSync("dist/ms", String(require("ms")("1 s")))'
    serve = (
        "node -e \"require('http').createServer((_, a) => a.end(require('fs').readFileSync('dist/ms'))).listen(8000)\""
    )
    package = json.dumps({"devDependencies": {"ms": "2.1.3"}, "scripts": {"build": "node build.js"}})
    files = {"build.js": script, "package.json": package}
    with service.deployed("built", files, serve) as data:
        assert data["build"] == "npm run build"
        assert service.visit(data).text == "1000"
        path = f"/builders/{data['uuid']}"
        stages = [e["details"] for e in service.call("GET", f"{path}/events?type=stage.finished").json()["data"]]
        assert {stage["stage"] for stage in stages} >= {"review", "install", "build", "start"}
        assert service.call("POST", f"{path}/restart").status_code == 200
        assert service.visit(data).text == "1000"
        broken = {"files": {**files, "build.js": "console.error('no such thing'); process.exit(3)"}}
        failed = service.call("PUT", path, json=broken)
        assert (failed.status_code, failed.json()["code"]) == (422, "build_failed")
        assert "no such thing" in failed.json()["message"]
        assert service.visit(data).text == "1000"
        removed = service.call("DELETE", f"{path}/build-cache").json()["data"]
        assert removed["results"] == 1
        assert service.visit(data).text == "1000"


@pytest.mark.slow
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
