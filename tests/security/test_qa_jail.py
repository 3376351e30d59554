"""The jail of QA's programs, which read answers of hostile apps, attacked from inside."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from builderd.previews.model import Address
from builderd.qa.testers import jail
from builderd.qa.testers.jail import JailFailed, Job
from builderd.sandboxing.bubblewrap import UID

pytestmark = pytest.mark.root

SECONDS = 20.0
MB = 1_000_000


@asynccontextmanager
async def app(answer: bytes) -> AsyncIterator[Address]:
    """Run an app that answers this to each connection."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs of the test's own, for the jail."""
    tmp_path.chmod(0o755)
    shutil.copy(jail.WORKERS / "start.py", tmp_path)
    monkeypatch.setattr(jail, "WORKERS", tmp_path)
    return tmp_path


async def run(workers: Path, program: str, answer: bytes = b"hello", **limits: Any) -> Any:
    (workers / "attack.py").write_text(program)
    job = Job("attack.py", {}, **{"seconds": SECONDS, "memory": 500 * MB, **limits})
    async with app(answer) as address:
        return await jail.run(job, address)


LOOK = """
import json, os, socket, sys
def tries(action):
    try:
        return str(action())
    except Exception as error:
        return type(error).__name__
def dial(host, port):
    with socket.create_connection((host, port), 2) as there:
        there.sendall(b"x")
        return there.recv(100).decode()
port = %d
json.dump({
    "uid": os.getuid(),
    "app": tries(lambda: dial("127.0.0.1", 7000)),
    "host": tries(lambda: dial("127.0.0.1", port)),
    "world": tries(lambda: dial("198.51.100.7", 80)),
    "names": tries(lambda: socket.getaddrinfo("example.com", 80)),
    "shadow": tries(lambda: open("/etc/shadow").read()),
    "root": tries(lambda: os.listdir("/root")),
    "home": tries(lambda: os.listdir("/var/lib")),
    "write": tries(lambda: open("/usr/bin/planted", "w")),
    "venv": tries(lambda: open("/venv/planted", "w")),
    "workers": tries(lambda: open("/workers/planted", "w")),
    "setuid": tries(lambda: os.setuid(0)),
    "mount": tries(lambda: os.listdir("/proc/1/root/work")),
    "links": sorted(name for _, name in socket.if_nameindex()),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "environment": sorted(set(os.environ) - {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE"}),
    "privileges": [line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")],
}, sys.stdout)
"""


async def test_jail_reaches_only_the_app(workers: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as of_host:
        seen = await run(workers, LOOK % of_host.getsockname()[1])
    assert seen["app"] == "hello"
    assert seen["host"] == "ConnectionRefusedError"
    assert seen["world"] in ("OSError", "TimeoutError")
    assert seen["names"] == "gaierror"
    assert seen["links"] == ["lo"]


async def test_jail_has_no_privileges_and_no_host_files(workers: Path) -> None:
    seen = await run(workers, LOOK % 1)
    assert seen["uid"] == UID
    for what in ("shadow", "root", "home", "write", "venv", "workers", "setuid", "mount"):
        assert seen[what] in ("FileNotFoundError", "PermissionError", "OSError"), (what, seen[what])
    assert seen["processes"] <= 2
    assert seen["environment"] == []
    assert seen["privileges"] == ["1"]


@pytest.mark.parametrize(
    ("program", "limits", "words"),
    [
        ("import time; time.sleep(60)", {"seconds": 1.0}, "did not end within 1 seconds"),
        ("x = bytearray(400_000_000); import time; time.sleep(60)", {"memory": 100 * MB}, "more than 100 MB"),
        ("x = bytearray(10**9)", {"address_space": 300 * MB}, "MemoryError"),
        ("while True: print('x' * 10000)", {"output": MB}, "more than 1000000 bytes"),
        ("print('[' * 100000)", {}, "cannot be read"),
        ("import os; os._exit(7)", {}, "exit code 7"),
        ("import os\nwhile True:\n  try: os.fork()\n  except OSError: raise SystemExit(9)", {"seconds": 1.0}, "it "),
    ],
    ids=["hangs", "eats-memory", "address-space", "talks-for-ever", "bomb", "dies", "forks"],
)
async def test_misbehaving_program_is_killed_and_reported(
    workers: Path, program: str, limits: dict[str, Any], words: str
) -> None:
    before = _of_jail()
    with pytest.raises(JailFailed, match=words):
        await run(workers, program, **limits)
    async with asyncio.timeout(SECONDS):
        while _of_jail() - before:
            await asyncio.sleep(0.05)


def _of_jail() -> set[str]:
    """Processes of the jail's uid."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and process.stat().st_uid == UID:
                found.add(process.name)
        except OSError:
            continue
    return found


async def test_app_that_rejects_connections_is_no_jail_failure(workers: Path) -> None:
    (workers / "attack.py").write_text(LOOK % 1)
    # Bound, so that nothing else gets the port, and not listening.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        seen = await jail.run(Job("attack.py", {}, SECONDS, 500 * MB), Address("127.0.0.1", port))
    # As the relay is closed before or after it has read.
    assert seen["app"] in ("", "ConnectionResetError")
