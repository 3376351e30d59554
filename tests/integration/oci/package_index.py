"""A package index for tests: wheels and source archives made on the spot, served as PEP 503 says."""

from __future__ import annotations

import base64
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Distribution:
    name: str
    file: str
    content: bytes


def wheel(name: str, files: Mapping[str, str]) -> Distribution:
    """A wheel of version 1 with these files in it, whatever they are."""
    info = f"{name}-1.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = io.BytesIO()
    members = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags}
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in members.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*members, f"{info}/RECORD"]))
    return Distribution(name, f"{name}-1-py3-none-any.whl", content.getvalue())


#: Builds a wheel that holds what ``attack`` returned: it needs nothing but Python, and runs anything.
BACKEND = """
import json, zipfile
from attack import attack

def build_wheel(directory, settings=None, metadata=None):
    name = "{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(directory + "/" + name, "w") as archive:
        archive.writestr("{name}_report.json", json.dumps(attack()))
        archive.writestr("{name}-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n")
        tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        archive.writestr("{name}-1.dist-info/WHEEL", tags)
        archive.writestr("{name}-1.dist-info/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "{name}"
version = "1"
"""


def source(name: str, attack: str) -> Distribution:
    """A source archive of version 1 whose build runs the function ``attack`` of this text."""
    files = {
        "pyproject.toml": PYPROJECT.format(name=name),
        "backend.py": BACKEND.format(name=name),
        "attack.py": attack,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
    }
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-1/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return Distribution(name, f"{name}-1.tar.gz", content.getvalue())


@contextmanager
def serve(host: str, port: int, *distributions: Distribution, login: str = "") -> Iterator[str]:
    """The index at this address; yields its URL. ``login`` is the ``user:password`` that it asks for."""
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
    pages = {f"/files/{d.file}": d.content for d in distributions}
    for name in {d.name for d in distributions}:
        links = "".join(f'<a href="/files/{d.file}">{d.file}</a>' for d in distributions if d.name == name)
        pages[f"/simple/{name}/"] = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = pages.get(self.path)
            if wanted and self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Type", "text/html" if self.path.startswith("/simple/") else "application/zip")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if wanted is None or self.headers.get("Authorization") == wanted:
                self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *arguments: object) -> None:
            return

    with ThreadingHTTPServer((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{host}:{port}/simple"
        finally:
            server.shutdown()
            thread.join()
