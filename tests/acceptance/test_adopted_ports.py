"""Apps that take no notice of PORT: their previews lead to where they listen."""

from __future__ import annotations

import pytest
from tests.acceptance.live_service import LiveService

pytestmark = pytest.mark.root

#: The development server of Flask, with what opens beside it.
FLASK = """\
from flask import Flask, request
import socket
app = Flask(__name__)
{beside}
@app.get("/")
def answer():
    return f"flask for {{request.remote_addr}}"

app.run()
"""
FILES = {"requirements.txt": "flask==3.0.0\n"}


def test_preview_leads_to_a_loopback_port_over_restarts_and_versions(service: LiveService) -> None:
    body = {"name": "ports", "entrypoint": "python3 main.py", "files": {**FILES, "main.py": FLASK.format(beside="")}}
    made = service.call("POST", "/builders", json=body)
    data = made.json()["data"]
    path = f"/builders/{data['uuid']}"
    try:
        assert (data["port"], data["fixed_port"], data["qa_passed"]) == (5000, False, True)
        events = service.call("GET", f"{path}/events").json()["data"]
        assert [one["reason"] for one in events if one["type"] == "port.adopted"] == [
            "the app listens on 127.0.0.1:5000, not on port 8000: the preview leads there"
        ]
        seen = service.visit(data).text
        assert seen.startswith("flask for 10.")
        for _ in range(2):
            assert service.call("POST", f"{path}/stop").status_code == 200
            assert service.call("POST", f"{path}/start").status_code == 200
            assert service.visit(data).text == seen
        changed = service.call("PATCH", path, json={"env": {"A": "1"}})
        assert (changed.status_code, changed.json()["data"]["port"]) == (200, 5000), changed.text
        assert service.visit(data).text == seen
        assert service.call("POST", f"{path}/rollback", json={"version": 1}).json()["data"]["port"] == 5000
    finally:
        service.call("DELETE", f"{path}?purge=true")


def test_app_with_two_ports_is_refused_and_says_how_to_choose(service: LiveService) -> None:
    app = FLASK.format(beside='beside = socket.create_server(("0.0.0.0", 9100))')
    body = {"name": "two-ports", "entrypoint": "python3 main.py", "files": {**FILES, "main.py": app}}
    refused = service.call("POST", "/builders", json=body)
    assert refused.json()["code"] == "start_failed"
    assert "on port 5000, 9100, not on 0.0.0.0:8000" in refused.json()["message"]
    assert 'set "port" to the one' in refused.json()["message"]
    made = service.call("POST", "/builders", json={**body, "port": 5000})
    assert (made.status_code, made.json()["data"]["port"]) == (201, 5000), made.text
    assert service.visit(made.json()["data"]).text.startswith("flask for")
    service.call("DELETE", f"/builders/{made.json()['data']['uuid']}?purge=true")
