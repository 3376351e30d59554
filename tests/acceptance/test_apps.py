"""Real apps of many kinds, as users bring them: each created by one call, visited through its preview, and deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import pytest
from tests.acceptance.live_service import LiveService
from websockets.sync.client import ClientConnection, connect

pytestmark = [pytest.mark.root, pytest.mark.engines]

#: A guest book: rendered by a template, kept in an SQLite file beside the code.
FLASK = {
    "requirements.txt": "flask",
    "templates/book.html": "{% for name in names %}<li>{{ name }}</li>{% endfor %}",
    "main.py": """\
import os, sqlite3
from flask import Flask, redirect, render_template, request

app = Flask(__name__)

def query(*words):
    with sqlite3.connect("book.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS guests (name TEXT)")
        return db.execute(*words).fetchall()

@app.get("/")
def show():
    return render_template("book.html", names=[name for (name,) in query("SELECT name FROM guests")])

@app.post("/")
def sign():
    query("INSERT INTO guests VALUES (?)", [request.form["name"]])
    return redirect("/")

app.run(host="0.0.0.0", port=int(os.environ["PORT"]))
""",
}

FASTAPI = {
    "requirements.txt": "# the API\nfastapi\nuvicorn\n",
    "app/__init__.py": "",
    "app/main.py": """\
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI(title="Sums")

class Sum(BaseModel):
    numbers: list[int]

@app.post("/sums")
async def add(given: Sum) -> dict[str, int]:
    return {"sum": sum(given.numbers)}
""",
}

NODE = {
    "server.js": """\
const { createServer } = require("node:http");

createServer((request, response) => {
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify({ path: request.url, host: request.headers["x-forwarded-host"], node: process.version }));
}).listen(process.env.PORT, "0.0.0.0");
""",
}

SITE = {
    "index.html": "<!doctype html><title>A page</title><h1>It is served</h1>",
    "picture.png": {"content": "iVBORw0KGgo=", "encoding": "base64"},
    "docs/über uns.txt": "Grüße",
}

#: Its page shows a text that the server pushes over the page's own socket when a button is pressed.
NICEGUI = {
    "requirements.txt": "nicegui>=3,<4",
    "main.py": """\
import os
from nicegui import ui

@ui.page("/")
def page():
    label = ui.label("nothing yet")
    ui.timer(0.1, lambda: label.set_text("pushed over the socket"), once=True)

ui.run(host="0.0.0.0", port=int(os.environ["PORT"]), reload=False, show=False)
""",
}

#: Tells what it is shown, and what the API says of it.
SELF = {
    "main.py": """\
import json, os, urllib.error, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

def ask(uuid):
    url = f"{os.environ['BUILDERD_URL']}/api/v1/builders/{uuid}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['SERVICE_TOKEN']}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        uuid = self.path[1:] or os.environ["BUILDER_UUID"]
        body = json.dumps({"answer": ask(uuid), "headers": dict(self.headers), "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
""",
}

#: docopt was never published as a wheel.
FROM_SOURCE = {
    "requirements.txt": "docopt==0.6.2",
    "main.py": """\
import docopt, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(docopt.docopt("usage: app --size=<n>", ["--size=7"])["--size"]).encode())

HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
""",
}


def test_flask_with_a_template_and_a_database_file(service: LiveService) -> None:
    with service.deployed("guests", FLASK, "python3 main.py") as data:
        assert service.visit(data).text == ""
        signed = service.visit(data, method="POST", data={"name": "Ada & <co>"}, follow_redirects=False)
        assert (signed.status_code, signed.headers["location"]) == (302, "/")
        assert service.visit(data).text == "<li>Ada &amp; &lt;co&gt;</li>"
        service.call("POST", f"/builders/{data['uuid']}/restart")
        assert service.visit(data).text == "<li>Ada &amp; &lt;co&gt;</li>"


def test_fastapi_under_uvicorn(service: LiveService) -> None:
    run = "uvicorn app.main:app --host 0.0.0.0 --port $PORT"
    with service.deployed("sums", FASTAPI, run, port=9000) as data:
        assert service.visit(data, "sums", method="POST", json={"numbers": [1, 2, 39]}).json() == {"sum": 42}
        assert service.visit(data, "sums", method="POST", json={"numbers": "x"}).status_code == 422
        assert service.visit(data, "openapi.json").json()["info"]["title"] == "Sums"


def test_node_without_dependencies(service: LiveService) -> None:
    with service.deployed("node", NODE, "node server.js") as data:
        told = service.visit(data, "a/b?c=d").json()
        assert told["path"] == "/a/b?c=d"
        assert told["host"] == data["preview_url"].split("/")[2]
        assert told["node"].startswith("v")


def test_static_folder_served_by_python(service: LiveService) -> None:
    with service.deployed("site", SITE, "python3 -m http.server $PORT") as data:
        page = service.visit(data)
        assert page.headers["content-type"] == "text/html"
        assert "It is served" in page.text
        assert service.visit(data, "picture.png").content == b"\x89PNG\r\n\x1a\n"
        assert service.visit(data, "docs/%C3%BCber%20uns.txt").content.decode() == "Grüße"
        assert service.visit(data, "nothing").status_code == 404


@pytest.mark.slow
def test_nicegui_pushes_over_websocket(service: LiveService) -> None:
    with service.deployed("gui", NICEGUI, "python3 main.py") as data:
        page = service.visit(data).text
        client_id = re.search(r"'client_id': '([0-9a-f-]{36})'", page)
        assert client_id, page
        with nicegui_socket(service, data, client_id[1]) as socket:
            messages = socketio_messages(socket)
            assert "pushed over the socket" in next(text for text in messages if text.startswith('42["update"'))


def nicegui_socket(service: LiveService, data: dict[str, Any], client_id: str) -> ClientConnection:
    """The socket that the page's own script would open."""
    page = {"client_id": client_id, "document_id": str(uuid4()), "tab_id": str(uuid4()), "next_message_id": 0}
    query = urlencode({**page, "implicit_handshake": "true", "EIO": 4, "transport": "websocket"})
    host = data["preview_url"].split("/")[2]
    return connect(f"ws://{host}/_nicegui_ws/socket.io/?{query}", sock=service.dial_preview(), open_timeout=30)


def socketio_messages(socket: ClientConnection) -> Iterator[str]:
    """Yield the server's messages, as Engine.IO 4 and Socket.IO 5 frame them.

    ``0`` opens, ``40`` joins, ``2`` is a ping.
    """
    opened = socket.recv(30)
    assert isinstance(opened, str)
    assert json.loads(opened.removeprefix("0"))["sid"]
    socket.send("40")
    while True:
        message = socket.recv(30)
        assert isinstance(message, str)
        if message == "2":
            socket.send("3")
        yield message


def test_app_reads_only_its_own_record(service: LiveService) -> None:
    with (
        service.deployed("self", SELF, "python3 main.py") as data,
        service.deployed("other", SITE, "python3 -m http.server $PORT") as other,
    ):
        own = service.visit(data).json()["answer"]
        assert own["success"]
        assert (own["data"]["uuid"], own["data"]["name"]) == (data["uuid"], "self")
        assert own["data"]["status"] == "running"
        assert service.visit(data, other["uuid"]).json()["answer"]["code"] == "not_found"


def test_package_without_wheel_is_built_from_source(service: LiveService) -> None:
    with service.deployed("source", FROM_SOURCE, "python3 main.py") as data:
        assert service.visit(data).text == "7"
        said = " ".join(build_log(service, data))
        assert "building from source" in said
        assert "docopt==0.6.2" in said


def test_same_requirements_share_one_layer(service: LiveService) -> None:
    requirements = {"requirements.txt": "# as before, written otherwise\n\n  itsdangerous ==2.2.0  # pinned\n"}
    first = {**SITE, "requirements.txt": "itsdangerous==2.2.0"}
    with service.deployed("layer-one", first, "python3 -m http.server $PORT") as one:
        assert install_stage(service, one) == "made"
        with service.deployed("layer-two", {**SITE, **requirements}, "python3 -m http.server $PORT") as two:
            assert install_stage(service, two) == "reused"
            shown = "python3 -c 'import itsdangerous; print(itsdangerous.__name__)'"
            answer = service.call("POST", f"/builders/{two['uuid']}/exec", json={"command": shown})
            assert answer.json()["data"]["output"] == "itsdangerous\n"


def install_stage(service: LiveService, data: dict[str, Any]) -> str:
    """Return whether the layer was built or reused, by the build log."""
    (*_, last) = build_log(service, data)
    return "reused" if "reused" in last else "made"


def build_log(service: LiveService, data: dict[str, Any]) -> list[str]:
    answer: httpx.Response = service.call("GET", f"/builders/{data['uuid']}/logs?stream=build")
    return [line["text"] for line in answer.json()["data"]]
