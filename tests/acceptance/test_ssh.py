"""SSH with the clients that people use, into a real sandbox."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.scenarios import run
from tests.acceptance.ssh_box import Box, box_of

pytestmark = [pytest.mark.root, pytest.mark.engines]


@pytest.fixture
def box(service: LiveService, tmp_path: Path) -> Iterator[Box]:
    with box_of(service, tmp_path) as box:
        yield box


def test_ssh_command_returns_streams_and_exit_status(box: Box) -> None:
    done = box.run("echo out; echo err >&2; echo $GREETING; id -un; pwd; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\nhi\napp\n/app\n", b"err\n")
    assert box.run("cat; exit 0", input=b"a\0b" * 100_000).stdout == b"a\0b" * 100_000
    assert box.run(input=b"echo from a script\nexit 3\n").returncode == 3


def test_ssh_shell_has_a_terminal_of_the_right_size(box: Box) -> None:
    controller, terminal = pty.openpty()
    os.set_blocking(controller, False)
    command = ["ssh", "-tt", *box.options, "-p", box.port, box.target]
    shell = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    try:
        os.write(controller, b"stty size; tty; exit 5\n")
        text = _read(controller, shell)
    finally:
        shell.kill()
        os.close(controller)
    assert "/dev/pts/" in text
    assert shell.wait(10) in (5, -9)


def _read(controller: int, process: subprocess.Popen[bytes]) -> str:
    text, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([controller], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                text += os.read(controller, 65536)
    with contextlib.suppress(OSError):
        text += os.read(controller, 65536)
    return text.decode(errors="replace")


def test_files_are_copied_by_scp_sftp_and_rsync(box: Box, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "in.bin").write_bytes(content)
    scp = ["scp", *box.options, "-P", box.port]
    subprocess.run([*scp, str(tmp_path / "in.bin"), f"{box.target}:data.bin"], check=True, timeout=60)
    subprocess.run([*scp, f"{box.target}:/app/data.bin", str(tmp_path / "out.bin")], check=True, timeout=60)
    assert (tmp_path / "out.bin").read_bytes() == content

    batch = tmp_path / "batch"
    batch.write_text(f"pwd\nrename data.bin renamed.bin\nget renamed.bin {tmp_path}/sftp.bin\n")
    sftp = ["sftp", *box.options, "-P", box.port, "-b", str(batch), box.target]
    told = subprocess.run(sftp, check=True, capture_output=True, timeout=60)
    assert b"/app" in told.stdout
    assert (tmp_path / "sftp.bin").read_bytes() == content

    shell = " ".join(["ssh", *box.options, "-p", box.port])
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/file").write_text("x")
    subprocess.run(["rsync", "-a", "-e", shell, f"{folder}/", f"{box.target}:synced/"], check=True, timeout=60)
    assert run(box.service, box.uuid, "cat synced/deep/file") == (0, "x")


def test_only_ports_of_the_app_are_forwarded(box: Box) -> None:
    with box.listening("-L", "localhost:8000") as port:
        with socket.create_connection(("127.0.0.1", port), 20) as visitor:
            visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: visitor.recv(65536), b""))
        assert text.endswith(b"hi")
    for place in (f"127.0.0.2:{box.service.port}", "169.254.169.254:80", "deb.debian.org:80"):
        with box.listening("-L", place) as port, socket.create_connection(("127.0.0.1", port), 20) as visitor:
            visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert visitor.recv(100) == b""


def test_remote_agent_and_x11_forwarding_are_refused(box: Box) -> None:
    done = box.ssh("-A", "-X", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22", box.target, "true")
    assert done.returncode != 0
    assert box.ssh("-A", box.target, "echo ${SSH_AUTH_SOCK:-none}").stdout == b"none\n"


def test_wrong_or_revoked_ssh_token_is_refused(box: Box) -> None:
    for user in ("root", "bdssh_nobody", box.grant["token"][:-1]):
        done = box.ssh(f"{user}@127.0.0.1", "id")
        assert (done.returncode, done.stdout) == (255, b"")
        assert b"unknown, expired or revoked" in done.stderr
    box.service.call("DELETE", f"/builders/{box.uuid}/ssh")
    assert box.run("id").returncode == 255


def test_revoking_closes_sessions_and_kills_their_processes(box: Box) -> None:
    command = ["ssh", *box.options, "-p", box.port, box.target, "echo begun; exec sleep 1234"]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"begun\n"
    box.service.call("POST", f"/builders/{box.uuid}/ssh/recreate", json={})
    client.communicate(timeout=30)
    assert client.returncode == 255
    deadline = time.monotonic() + 20
    while run(box.service, box.uuid, "pgrep -f '^sleep 1234'")[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run(box.service, box.uuid, "pgrep -f '^sleep 1234'")[0] == 1


def test_processes_of_a_killed_client_are_killed(box: Box) -> None:
    command = ["ssh", *box.options, "-p", box.port, box.target, "echo begun; exec sleep 4321"]
    client = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"begun\n"
    client.send_signal(signal.SIGKILL)
    client.communicate()
    deadline = time.monotonic() + 20
    while run(box.service, box.uuid, "pgrep -f '^sleep 4321'")[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run(box.service, box.uuid, "pgrep -f '^sleep 4321'")[0] == 1


def test_login_starts_a_stopped_builder_and_is_recorded(box: Box) -> None:
    assert box.service.call("POST", f"/builders/{box.uuid}/stop").status_code == 200
    assert box.run("echo up").stdout == b"up\n"
    assert box.service.call("GET", f"/builders/{box.uuid}").json()["data"]["status"] == "running"
    deadline = time.monotonic() + 20
    while "ssh.closed" not in (text := box.service.call("GET", f"/builders/{box.uuid}/events?per_page=100").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    assert "logged in from 127.0.0.1" in text
    assert "echo up" not in text
    assert box.grant["token"] not in text
