"""Git's own server over HTTP: repositories of a test, by TLS with a certificate of its own."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.outside import Outside

PORT = 8443


def make_repository(folder: Path, files: Mapping[str, str], tag: str) -> Path:
    """Make a repository with one commit of these files, under this tag."""
    folder.mkdir(parents=True)
    for path, text in files.items():
        (folder / path).write_text(text)
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "Say hello"), ("tag", tag)):
        who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        subprocess.run(("git", "-C", folder, *who, *words), check=True, capture_output=True)
    return folder


@contextmanager
def serving_git(there: Outside, root: Path, certificate: Path) -> Iterator[None]:
    """Serve the repositories below ``root`` by ``git http-backend`` over TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            length = self.headers.get("Content-Length", "0")
            variables = {
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": length,
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
            }
            body = self.rfile.read(int(length))
            program, env = ("git", "http-backend"), {**os.environ, **variables}
            done = subprocess.run(program, env=env, input=body, capture_output=True, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 -- the name that http.server calls

        def log_message(self, *arguments: object) -> None:
            return

    with there.serving(Handler, PORT, tls):
        yield
