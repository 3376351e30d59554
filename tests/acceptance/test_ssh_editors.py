"""SSH features that remote modes of editors use: scripts on stdin, proxies, many sessions, Unix sockets."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.live_service import LiveService, free_port
from tests.acceptance.ssh_box import Box, box_of

pytestmark = [pytest.mark.root, pytest.mark.engines]

#: Downloads nothing, but does what a bootstrap does besides: looks around, unpacks, starts a server, says its port.
BOOTSTRAP = r"""
set -e
test "$(uname -s)" = Linux && test -n "$HOME" && cd "$HOME"
command -v curl tar gzip flock >/dev/null
mkdir -p .editor/bin && echo content > .editor/bin/part
tar -C .editor -czf editor.tgz bin && rm -r .editor && mkdir .editor && tar -C .editor -xzf editor.tgz
cat > .editor/server.py <<'EOF'
import http.server, functools, os
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=os.path.expanduser("~/.editor/bin"))
server = http.server.HTTPServer(("127.0.0.1", 0), handler)
print("listening on", server.server_port, flush=True)
server.serve_forever()
EOF
nohup python3 .editor/server.py > .editor/log 2>&1 &
until grep -q listening .editor/log; do sleep 0.1; done
cat .editor/log
"""

UNIX_SERVER = """
import socket
server = socket.socket(socket.AF_UNIX)
server.bind("/tmp/editor.sock")
server.listen()
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    peer.sendall(b"heard " + peer.recv(100))
    peer.close()
"""


@pytest.fixture
def box(service: LiveService, tmp_path: Path) -> Iterator[Box]:
    with box_of(service, tmp_path) as box:
        yield box


def curl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["curl", "-sS", "-m", "20", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", ["bash", "bash -s", "sh"])
def test_ssh_shell_runs_a_script_from_stdin(box: Box, shell: str) -> None:
    long = "".join(f": {'x' * 200} {n}\n" for n in range(2000))
    done = box.ssh("-T", box.target, shell, input=f"{long}echo reached the end; exit 3\n".encode())
    assert (done.returncode, done.stdout) == (3, b"reached the end\n")


def test_server_started_by_a_session_is_reached_through_a_socks_proxy(box: Box) -> None:
    """One login with ``-D`` whose command is a shell that is fed: this is how VS Code begins."""
    done = box.ssh("-T", "-D", str(free_port()), box.target, "bash", input=BOOTSTRAP.encode())
    assert done.returncode == 0, done.stderr
    port = int(done.stdout.split()[-1])
    with box.listening("-D") as proxy:
        socks = ("--socks5-hostname", f"127.0.0.1:{proxy}")
        assert curl(*socks, f"http://127.0.0.1:{port}/part").stdout == "content\n"
        assert curl(*socks, "http://localhost:8000/").stdout == "hi"
        for place in (f"http://127.0.0.1:{box.service.port}/healthz", "http://169.254.169.254/", "http://1.1.1.1/"):
            refused = curl(*socks, place)
            assert (refused.stdout, refused.returncode != 0) == ("", True)


def test_multiplexed_sessions_share_one_login(box: Box, tmp_path: Path) -> None:
    shared = ["-o", f"ControlPath={tmp_path}/c", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    assert box.ssh(*shared, box.target, "echo first").stdout == b"first\n"
    command = ["ssh", *box.options, *shared, "-p", box.port, box.target]
    # Each ends only when all have begun, so they run at once.
    meet = "mkdir -p /tmp/meet; cd /tmp/meet; touch {0}; until [ $(ls | wc -l) -ge 8 ]; do sleep .1; done; echo {0}"
    clients = [subprocess.Popen([*command, meet.format(n)], stdout=subprocess.PIPE) for n in range(8)]
    try:
        assert [client.communicate(timeout=60)[0] for client in clients] == [f"{n}\n".encode() for n in range(8)]
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    logins = box.service.call("GET", f"/builders/{box.uuid}/events?type=ssh.opened").json()["meta"]["total"]
    assert logins == 1
    assert box.ssh(*shared, "-O", "exit", box.target).returncode == 0


def test_only_unix_sockets_of_the_sandbox_are_forwarded(box: Box, tmp_path: Path) -> None:
    box.run("cat > /tmp/server.py", input=UNIX_SERVER.encode())
    server = subprocess.Popen(
        ["ssh", *box.options, "-p", box.port, box.target, "python3 /tmp/server.py"], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"listening\n"
    host = socket.socket(socket.AF_UNIX)
    host.bind(str(tmp_path / "host.sock"))
    host.listen()
    with box.listening("-L", "/tmp/editor.sock") as port, socket.create_connection(("127.0.0.1", port), 20) as peer:
        peer.sendall(b"you")
        assert peer.recv(100) == b"heard you"
    with box.listening("-L", str(tmp_path / "host.sock")) as port:
        with socket.create_connection(("127.0.0.1", port), 20) as peer, contextlib.suppress(ConnectionError):
            assert peer.recv(100) == b""
    host.setblocking(False)
    with pytest.raises(BlockingIOError):
        host.accept()
    host.close()
    server.kill()
    server.communicate()
