"""The app that is deployed again and again, its kin, and what tests ask of it."""

from __future__ import annotations

from typing import Any

from tests.acceptance.live_service import LiveService

#: Answers the greeting to GET and POST, keeps what it is told under /note, and streams under /events.
#: Its listen backlog is that of other servers: on a loaded machine late visits of a test come at once, and the kernel
#: drops connections beyond http.server's five.
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

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer((os.environ.get("HOST", "0.0.0.0"), int(os.environ["PORT"])), App).serve_forever()
"""
#: Starts on trial, where it is let through to nobody, and ends where it takes over, be the service dead or alive: or
#: stalled, for the kernel takes connections in its place.
SHY = f"""\
import os, socket, sys, urllib.parse
service = urllib.parse.urlsplit(os.environ["BUILDERD_URL"])
try:
    socket.create_connection((service.hostname, service.port), 5).close()
    is_trial = False
except OSError as error:
    is_trial = not isinstance(error, ConnectionRefusedError)
if not is_trial:
    sys.exit("this is no trial")
{APP}"""
FILES = {"main.py": APP, "settings.ini": "a", "kept.txt": "x", "old.txt": "x"}


def put(service: LiveService, data: dict[str, Any], **change: Any) -> dict[str, Any]:
    """Deploy a version that takes over; the builder as it is then."""
    response = service.call("PUT", f"/builders/{data['uuid']}", json=change)
    assert response.status_code == 200, response.text
    shown: dict[str, Any] = response.json()["data"]
    return shown


#: Greets over a WebSocket, and says goodbye when it is told to end (RFC 6455, 7.4: service restart).
SOCKETS = """\
import asyncio, base64, hashlib, os, signal, struct

GREETING = os.environ.get("GREETING", "hello").encode()
open_ones = set()

async def answer(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
    fields = dict(line.split(": ", 1) for line in head.split("\\r\\n")[1:] if line)
    key = {name.lower(): value for name, value in fields.items()}.get("sec-websocket-key")
    if key is None:
        writer.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + GREETING)
        await writer.drain()
        return writer.close()
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    writer.write(b"HTTP/1.1 101 OK\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n")
    writer.write(b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\\r\\n\\r\\n")
    writer.write(bytes([0x81, len(GREETING)]) + GREETING)
    open_ones.add(writer)
    await reader.read()

async def main():
    over = asyncio.Event()
    if "ABRUPT" not in os.environ:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    server = await asyncio.start_server(answer, "0.0.0.0", int(os.environ["PORT"]))
    await over.wait()
    for writer in open_ones:
        writer.write(bytes([0x88, 2]) + struct.pack(">H", 1012))
        await writer.drain()

asyncio.run(main())
"""
