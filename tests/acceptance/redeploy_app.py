"""The app that is deployed again and again, its kin, and what tests ask of it."""

from __future__ import annotations

from typing import Any

from tests.acceptance.live_service import LiveService

#: Answers the greeting to GET and POST, keeps what it is told under /note, and streams under /events.
APP = """\
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/events":
            return self.stream()
        if self.path == "/note":
            return self.say(open("note").read())
        if self.path == "/settings":
            return self.say(open("settings.ini").read())
        self.say(os.environ.get("GREETING", "hello"))

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length).decode()
        if self.path == "/note":
            open("note", "w").write(text)
        if self.path == "/settings":
            open("settings.ini", "w").write(text)
        self.say(os.environ.get("GREETING", "hello"))

    def say(self, text, status=int(os.environ.get("STATUS", "200"))):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(b"data: tick\\n\\n")
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *_):
        pass

ThreadingHTTPServer((os.environ.get("HOST", "0.0.0.0"), int(os.environ["PORT"])), App).serve_forever()
"""
#: Starts on trial, where it reaches nobody, and ends where it takes over.
SHY = f"""\
import os, sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(os.environ["BUILDERD_URL"], timeout=2)
except urllib.error.HTTPError:
    sys.exit("somebody is there")
except OSError:
    pass
{APP}"""
FILES = {"main.py": APP, "settings.ini": "a", "kept.txt": "x", "old.txt": "x"}


def put(service: LiveService, data: dict[str, Any], **change: Any) -> dict[str, Any]:
    """Deploy a version that takes over; the builder as it is then."""
    response = service.call("PUT", f"/builders/{data['uuid']}", json=change)
    assert response.status_code == 200, response.text
    shown: dict[str, Any] = response.json()["data"]
    return shown
