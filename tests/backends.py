"""Back ends of backups on this machine: a REST server of restic's, and an SFTP server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

USER, PASSWORD = "backup", "canary-rest-77aa"


@dataclass(frozen=True)
class RestServer:
    """``url`` is for restic, with user and password; ``folder`` is where it keeps what it gets."""

    url: str
    folder: Path


@contextmanager
def rest_server(
    folder: Path, host: str = "127.0.0.1", network: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Iterator[RestServer]:
    """Debian's restic-rest-server, with a password, in this network."""
    program = shutil.which("restic-rest-server")
    if program is None:
        pytest.skip("no restic-rest-server: apt-get install restic-rest-server")
    folder.mkdir(parents=True, exist_ok=True)
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    (folder / ".htpasswd").write_text(f"{USER}:{{SHA}}{digest}\n")
    with network(), (folder / "log").open("wb") as log:
        port = _free_port()
        server = subprocess.Popen(
            [program, "--path", str(folder), "--listen", f"{host}:{port}"], stdout=log, stderr=log
        )
    with server:
        try:
            with network():
                _await(host, port)
            yield RestServer(f"rest:http://{USER}:{PASSWORD}@{host}:{port}/", folder)
        finally:
            server.terminate()


@dataclass(frozen=True)
class SftpServer:
    """``url`` is for restic; ``key`` and ``hosts`` are the files that a client needs."""

    url: str
    folder: Path
    key: Path
    hosts: Path


@contextmanager
def sftp_server(folder: Path) -> Iterator[SftpServer]:
    """An SFTP server that sees its folder alone and takes one key."""
    (folder / "root").mkdir(parents=True)
    host, client = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    client.write_private_key(folder / "key")
    (folder / "key").chmod(0o600)
    (folder / "authorized").write_bytes(client.export_public_key())
    port, ready, over = _free_port(), threading.Event(), threading.Event()

    async def serve() -> None:
        server = await asyncssh.listen(
            *("127.0.0.1", port),
            server_host_keys=[host],
            authorized_client_keys=str(folder / "authorized"),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder / "root").encode()),
        )
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.1)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    known = f"[127.0.0.1]:{port} {host.export_public_key().decode()}"
    (folder / "hosts").write_text(known)
    try:
        yield SftpServer(
            f"sftp://backup@127.0.0.1:{port}//repositories", folder / "root", folder / "key", folder / "hosts"
        )
    finally:
        over.set()
        thread.join(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(host: str, port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
