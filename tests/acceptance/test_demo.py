"""script/demo goes from a checkout to a live app, and its hint how to stop leaves nothing running."""

import json
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="builderd-demo-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def shell(command: str) -> str:
    # Over pipes, which never end where the service has inherited one: whoever ran it over SSH would wait for ever.
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_demo_is_live_until_stopped_as_printed(data_dir: Path) -> None:
    port, preview_port = free_ports(2)
    command = f"script/demo --data-dir {data_dir} --port {port} --preview-port {preview_port}"
    said = shell(command)
    stop = said[said.index("To stop it") :].splitlines()[1:]
    try:
        for stage in ("review", "install", "start"):
            assert re.search(rf"^  {stage} +\d+\.\d+ s$", said, re.MULTILINE), said
        url = re.search(r"^==> live: (\S+)$", said, re.MULTILINE)
        assert url, said
        assert url[1].endswith(f":{preview_port}/")
        assert json.loads(shell(f"curl -fsS {url[1]}")) == {"hello": "my-api", "my_flag": "1"}
    finally:
        shell("\n".join(stop))
    for closed in (port, preview_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", closed), timeout=5)
    # Of the data directory's processes none is left: each has its path in its arguments.
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(data_dir).encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
