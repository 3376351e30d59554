"""A builder that one logs in to with the clients that people use."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.acceptance.live_service import TINY_APP, LiveService, free_port

APP = {"main.py": TINY_APP}


class Box:
    """A builder, a token for it, and what a client needs to know."""

    def __init__(self, service: LiveService, data: dict[str, Any], folder: Path) -> None:
        self.service, self.data, self.uuid = service, data, data["uuid"]
        answer = service.call("POST", f"/builders/{self.uuid}/ssh", json={})
        assert answer.status_code == 201, answer.text
        self.grant = answer.json()["data"]
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(self.grant["known_hosts"] + "\n")

    @property
    def options(self) -> list[str]:
        return [
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}", "-F", "/dev/null"),
        ]

    @property
    def target(self) -> str:
        return f"{self.grant['token']}@127.0.0.1"

    @property
    def port(self) -> str:
        return str(self.grant["port"])

    def ssh(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        command = ["ssh", *self.options, "-p", self.port, *words]
        return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return self.ssh(self.target, *words, **options)

    @contextlib.contextmanager
    def listening(self, option: str, place: str = "") -> Iterator[int]:
        """A local port that a client forwards while the block lasts: ``-L`` to a place, or ``-D``."""
        port = free_port()
        where = f"127.0.0.1:{port}{place and ':'}{place}"
        command = ["ssh", *self.options, "-N", "-p", self.port, option, where, self.target]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            yield port
        finally:
            client.terminate()
            client.communicate()


@contextlib.contextmanager
def box_of(service: LiveService, folder: Path) -> Iterator[Box]:
    """A builder of its own, deleted afterwards."""
    with service.deployed("ssh-box", APP, "python3 main.py", env={"GREETING": "hi"}) as data:
        yield Box(service, data, folder)
