"""Attacks from inside a sandbox are refused or contained.

All of them run as a user's code would, through the API of a live service.
"""

from __future__ import annotations

import struct
import subprocess
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.incus_service import instances_on_incus, project_of
from tests.acceptance.live_service import LiveService
from tests.acceptance.scenarios import Visitor
from tests.incus import IncusCluster
from tests.patience import patience
from tests.security.sandbox.conftest import COMMAND_SECONDS, ISOLATIONS, Attacker, network_of, on_incus

from builderd.engine.incus.image import LOG
from builderd.schemas.builder_parts import MAX_TIMEOUT

pytestmark = pytest.mark.root

#: System calls by their number on x86-64 and a harmless set of arguments: each must answer an error.
REFUSED_CALLS = {
    "mount": (165, "0, 0, 0, 0, 0"),
    "umount2": (166, "b'/proc', 2"),
    "pivot_root": (155, "b'/', b'/'"),
    "unshare a user namespace": (272, "0x10000000"),
    "unshare a mount namespace": (272, "0x20000"),
    "clone into a user namespace": (56, "0x10000000 | 17, 0, 0, 0, 0"),
    "setns": (308, "0, 0"),
    "ptrace": (101, "16, 1, 0, 0"),
    "process_vm_readv": (310, "1, 0, 0, 0, 0, 0"),
    "bpf": (321, "0, 0, 0"),
    "io_uring_setup": (425, "1, 0"),
    "keyctl": (250, "0, 0, 0, 0, 0"),
    "add_key": (248, "b'user', b'x', b'y', 1, 0"),
    "userfaultfd": (323, "0"),
    "perf_event_open": (298, "0, 0, 0, 0, 0"),
    "kexec_load": (246, "0, 0, 0, 0"),
    "init_module": (175, "0, 0, 0"),
    "open_by_handle_at": (304, "0, 0, 0"),
    "open_tree": (428, "-100, b'/', 1"),
    "fsopen": (430, "b'tmpfs', 0"),
    "reboot": (169, "0xfee1dead, 672274793, 0, 0"),
    "settimeofday": (164, "0, 0"),
    "swapon": (167, "b'/app/x', 0"),
}


@pytest.mark.parametrize("call", REFUSED_CALLS)
def test_forbidden_system_call_is_refused(attacker_all_tests: Attacker, call: str) -> None:
    number, arguments = REFUSED_CALLS[call]
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); "
        f"result = libc.syscall({number}, {arguments}); "
        "print(result, ctypes.get_errno()); sys.exit(0 if result == -1 else 9)"
    )
    code, output = attacker_all_tests.run(f'python3 -c "{script}"')
    assert code == 0, output
    assert output.split()[0] == "-1"


#: Names of processes: of the app and the command, of init, and on Incus of the programs around them.
OWN_PROCESSES = "tini|sh|python3|cat|grep|wc|entry|s6-log|deliver"
HARMLESS = {
    "it is not root": ("id -u", "1000"),
    "it has no capabilities": ("grep CapEff /proc/self/status | cut -f2", "0000000000000000"),
    "it cannot gain privileges": ("grep NoNewPrivs /proc/self/status | cut -f2", "1"),
    "its system calls are filtered": ("grep -w Seccomp /proc/self/status | cut -f2", "2"),
    "it sees only its own processes": (f"cat /proc/[0-9]*/comm | grep -vxE '{OWN_PROCESSES}' | wc -l", "0"),
    "its host name is its own": ("hostname", "attacker"),
    "it has no disks": ("ls /dev | grep -cE 'vd|sd|loop|mem|kmsg|fuse' || true", "0"),
    "it cannot read the kernel's memory": ("head -c 1 /proc/kcore | wc -c", "0"),
    "it has no /sys of the host": ("ls /sys/class /sys/fs 2>/dev/null | wc -l", "0"),
    "a setuid program gives it nothing": ("find / -xdev -perm /6000 -type f 2>/dev/null | wc -l", "0"),
}


@pytest.mark.parametrize("fact", HARMLESS)
def test_probe_of_the_sandbox_finds_only_harmless_values(attacker_all_tests: Attacker, fact: str) -> None:
    command, expected = HARMLESS[fact]
    _, output = attacker_all_tests.run(command)
    assert output.strip().splitlines()[-1] == expected, output


UNWRITABLE = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
    "/proc/sys/net/ipv4/ip_forward",
    "/venv/x",
    "/usr/bin/python3",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/hosts",
)


@pytest.mark.parametrize("path", UNWRITABLE)
def test_app_cannot_write_outside_its_own_files(attacker_all_tests: Attacker, path: str) -> None:
    code, output = attacker_all_tests.run(f"echo x >> {path}")
    assert code != 0, output


def test_own_setuid_file_does_not_change_the_user(attacker: Attacker) -> None:
    code, output = attacker.run("cp /usr/bin/id ./id; chmod 6755 ./id; ./id -u")
    assert (code, output.strip()) == (0, "1000")


def test_host_files_are_unreachable(attacker: Attacker, arena: LiveService) -> None:
    secret = arena.data_dir / "canary"
    secret.write_text("a secret of the host")
    for path in (
        str(arena.data_dir),
        str(secret),
        "/run/builderd",
        "/var/lib/builderd-host",
        "/proc/1/root" + str(secret),
    ):
        code, output = attacker.run(f"cat {path} 2>&1 || ls {path} 2>&1")
        assert code != 0, output
        assert "a secret of the host" not in output


def test_groups_and_mounts_name_neither_instance_nor_sandbox(attacker: Attacker, arena: LiveService) -> None:
    """Refuse the attacker the paths to write to, should one find a way to write outside."""
    if on_incus(arena):
        pytest.skip("on Incus they are the guest's own")
    code, output = attacker.run("cat /proc/1/cgroup /proc/self/cgroup /proc/1/mountinfo /proc/self/mountinfo")
    assert (code, " /app " in output) == (0, True)
    sandboxes = [folder.name for folder in (arena.data_dir / "sandboxes").iterdir()]
    assert not [name for name in ("builderd", str(arena.data_dir), *sandboxes) if name in output]


def test_links_in_app_folder_do_not_escape(attacker: Attacker, arena: LiveService) -> None:
    uuid = attacker.data["uuid"]
    attacker.run("rm -rf main.py; ln -s /etc/passwd main.py; ln -s / root; ln -s ../../../../../../etc etc")
    before = Path("/etc/passwd").read_bytes()
    assert arena.call("POST", f"/builders/{uuid}/restart").status_code in (200, 422)
    assert Path("/etc/passwd").read_bytes() == before


@pytest.fixture(scope="module")
def attacker_all_tests(arena: LiveService, incus: IncusCluster | None) -> Any:
    """One attacker for the tests that change nothing."""
    with network_of(incus):
        data = arena.create("attacker", resources={"cpu": 1, "memory": 0.25, "disk": 1})
    yield Attacker(arena, data)
    with network_of(incus):
        arena.call("DELETE", f"/builders/{data['uuid']}")


# The network


@pytest.fixture
def host_listener() -> Any:
    """Something that listens on every address of the host, as a database would."""

    class Secret(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a secret of the host")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("0.0.0.0", 0), Secret)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_host_ports_are_unreachable(attacker: Attacker, arena: LiveService, host_listener: int) -> None:
    _, routes = attacker.run("ip route 2>/dev/null || cat /proc/net/route")
    gateway = gateway_of(attacker)
    for address in (gateway, own_address(), "127.0.0.1"):
        for port in (host_listener, arena.port, arena.preview_port):
            _, output = attacker.run(f"curl -s -m 2 http://{address}:{port}/ || echo refused")
            assert output.strip() == "refused", (address, port, output, routes)


def test_sandbox_api_serves_only_the_own_builder(attacker: Attacker, neighbour: dict[str, Any]) -> None:
    call = 'curl -s -m 5 -H "Authorization: Bearer $SERVICE_TOKEN" "$BUILDERD_URL/api/v1/builders/{}"'
    _, own = attacker.run(call.format("$BUILDER_UUID"))
    assert attacker.data["uuid"] in own
    _, other = attacker.run(call.format(neighbour["uuid"]))
    assert "neighbour" not in other
    _, listed = attacker.run('curl -s -m 5 -H "Authorization: Bearer $SERVICE_TOKEN" "$BUILDERD_URL/api/v1/builders"')
    assert '"success":false' in listed.replace(" ", "")


PRIVATE = ("169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "0.0.0.1", "224.0.0.1")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_networks_and_metadata_address_are_unreachable(attacker_all_tests: Attacker, address: str) -> None:
    _, output = attacker_all_tests.run(f"curl -s -m 2 -o /dev/null -w '%{{http_code}}' http://{address}/ || true")
    assert output.strip()[-3:] == "000", output


def test_neighbour_sandbox_is_unreachable(attacker: Attacker, arena: LiveService, neighbour: dict[str, Any]) -> None:
    answer = arena.call(
        "POST",
        f"/builders/{neighbour['uuid']}/exec",
        token=neighbour["token"],
        json={"command": "hostname -i"},
    )
    address = answer.json()["data"]["output"].split()[0]
    assert arena.visit(neighbour).text == "still here"
    _, output = attacker.run(f"curl -s -m 2 http://{address}:8000/ || echo refused")
    assert output.strip() == "refused"


def test_raw_and_packet_sockets_are_refused(attacker_all_tests: Attacker) -> None:
    for family, kind in (("AF_INET", "SOCK_RAW"), ("AF_PACKET", "SOCK_RAW")):
        code, output = attacker_all_tests.python(f"import socket; socket.socket(socket.{family}, socket.{kind}, 1)")
        assert code != 0
        assert "PermissionError" in output or "not implemented" in output, output


def test_app_cannot_change_its_address(attacker_all_tests: Attacker) -> None:
    code, output = attacker_all_tests.python(
        "import fcntl, socket, struct; s = socket.socket(); "
        'fcntl.ioctl(s, 0x8916, struct.pack("16sH2s4s8x", b"eth0", 2, b"", socket.inet_aton("10.0.0.9")))'
    )
    assert code != 0
    assert "PermissionError" in output, output


# Exhaustion, while a neighbour answers all along


def test_fork_bomb_is_contained(attacker: Attacker, arena: LiveService, neighbour: dict[str, Any]) -> None:
    with Visitor(arena, neighbour) as visitor:
        attacker.run(":(){ :|:& };:", timeout=5)
        attacker.run("sleep 1", timeout=5)
    assert visitor.failures == []
    assert visitor.answers > 0


def test_only_the_memory_hog_is_killed(attacker: Attacker, arena: LiveService, neighbour: dict[str, Any]) -> None:
    with Visitor(arena, neighbour) as visitor:
        code, _ = attacker.python(
            "b = [bytearray(10**7).replace(bytes(1), bytes([1])) for _ in range(1000)]", timeout=30
        )
        assert code != 0
    assert visitor.failures == []


#: In which a disk is full, also under gVisor.
FILL_SECONDS = min(round(patience(120)), MAX_TIMEOUT)


def test_filled_disk_stops_at_its_limit(attacker: Attacker, arena: LiveService, neighbour: dict[str, Any]) -> None:
    with Visitor(arena, neighbour) as visitor:
        code, output = attacker.run("head -c 2G /dev/zero > big; stat -c %s big", FILL_SECONDS)
        size = int(output.split()[-1])
        assert size <= 1 << 30, output
        assert "quota" in output.lower() or "space" in output.lower(), output
        attacker.run("head -c 2G /dev/zero > /tmp/big; head -c 2G /dev/zero > /dev/shm/big", FILL_SECONDS)
    assert visitor.failures == []
    written = arena.call(
        "POST", f"/builders/{neighbour['uuid']}/exec", token=neighbour["token"], json={"command": "echo x > y"}
    )
    assert written.json()["data"]["exit_code"] == 0
    assert code in (0, 1)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_log_flood_is_truncated_without_affecting_others(
    arena: LiveService, incus: IncusCluster | None, neighbour: dict[str, Any], isolation: str
) -> None:
    flood = (
        "import os, sys, threading, time\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "def flood():\n"
        "    line = b'x' * 1023 + b'\\n'\n"
        "    end = time.time() + 3\n"
        "    while time.time() < end:\n"
        "        os.write(1, line * 1024)\n"
        "        time.sleep(0.02)\n"
        "threading.Thread(target=flood, daemon=True).start()\n"
        "HTTPServer(('0.0.0.0', 8000), BaseHTTPRequestHandler).serve_forever()\n"
    )
    with Visitor(arena, neighbour) as visitor:
        data = arena.create("flooder", flood, isolation=isolation)
        threading.Event().wait(4)
        lines = arena.call("GET", f"/builders/{data['uuid']}/logs?tail=10").json()["data"]
    assert visitor.failures == []
    assert len(lines) == 10
    size = sum(log_sizes(arena, incus))
    assert 1_000_000 < size < 50_000_000
    arena.call("DELETE", f"/builders/{data['uuid']}")


def log_sizes(arena: LiveService, incus: IncusCluster | None) -> list[int]:
    """Return the bytes of each file of the arena's logs; on Incus they are on the roots of instances on the member."""
    if incus is None:
        return [path.stat().st_size for path in (arena.data_dir / "logs").rglob("*") if path.is_file()]
    names = [f"containers/{project_of(arena)}_{name}/rootfs{LOG}" for name in instances_on_incus(arena)]
    look = [*incus.inside("node1"), "find", *incus.in_pool("node1", names), "-type", "f", "-printf", "%s\n"]
    return [int(line) for line in subprocess.run(look, check=True, capture_output=True, text=True).stdout.split()]


# exec


def test_timeout_kills_every_process_of_the_command(attacker: Attacker) -> None:
    daemon = "setsid sh -c 'while true; do sleep 0.1; date +%s%N > alive; done' >/dev/null 2>&1 &"
    for seconds in (1, 5, COMMAND_SECONDS):  # until the daemon was alive when the time was up
        code, _ = attacker.run(f"{daemon} sleep 10000", timeout=seconds)
        assert code == 124
        _, first = attacker.run("cat alive")
        if first.strip().isdigit():
            break
    _, second = attacker.run("sleep 0.5; cat alive")
    assert first.strip().isdigit()
    assert first == second


def test_output_flood_is_truncated_and_reported(attacker: Attacker, arena: LiveService) -> None:
    request = {"command": "head -c 30M /dev/zero | tr '\\0' x", "timeout": COMMAND_SECONDS}
    answer = arena.call("POST", f"/builders/{attacker.data['uuid']}/exec", json=request).json()["data"]
    assert answer["truncated"] is True
    assert len(answer["output"]) <= 10_000_000


def flooding_library() -> bytes:
    """The least that the loader of x86-64 takes for a shared library: as it is loaded, it writes for ever."""
    code = "b801000000 bf01000000 488d35efffffff ba40000000 0f05 ebe6"  # for ever: write(1, itself, 64)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    load = struct.pack("<2I6Q", 1, 7, 0, 0, 0, 0x400, 0x400, 0x1000)
    dynamic = struct.pack("<2I6Q", 2, 6, 0x180, 0x180, 0x180, 80, 80, 8)
    stack = struct.pack("<2I6Q", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    entries = struct.pack("<10Q", 12, 0x100, 5, 0x200, 6, 0x200, 10, 1, 0, 0)  # its init, and empty tables
    whole = (header + load + dynamic + stack).ljust(0x100, b"\0") + bytes.fromhex(code)
    return (whole.ljust(0x180, b"\0") + entries).ljust(0x400, b"\0")


#: Enough to write more than is kept of an output, in pieces of 64 bytes.
FLOOD_SECONDS = min(round(patience(5)), MAX_TIMEOUT)


def test_output_before_a_command_starts_does_not_block_others(attacker: Attacker, arena: LiveService) -> None:
    attacker.run(f"echo {b64encode(flooding_library()).decode()} | base64 -d > flood.so")
    request = {"command": "true", "env": {"LD_PRELOAD": "/app/flood.so"}, "timeout": FLOOD_SECONDS}
    with ThreadPoolExecutor() as pool:
        flood = pool.submit(arena.call, "POST", f"/builders/{attacker.data['uuid']}/exec", json=request)
        while not flood.done():
            assert arena.call("GET", "/builders").status_code == 200
    answer = flood.result()
    if answer.status_code == 200 or on_incus(arena):  # where a command begins without a gate, the output is its own
        assert answer.status_code == 200, answer.text
        assert (answer.json()["data"]["exit_code"], answer.json()["data"]["truncated"]) == (124, True)
    else:
        assert (answer.status_code, "floods its output" in answer.text) == (409, True), answer.text
    _, left = attacker.run("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c ^LD_PRELOAD=")
    assert left == "0\n"


def gateway_of(attacker: Attacker) -> str:
    _, url = attacker.run("echo $BUILDERD_URL")
    return url.strip().split("//")[1].split(":")[0]


def own_address() -> str:
    """An address of the host towards the world."""
    words = ["ip", "-4", "-o", "address", "show", "scope", "global"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    return next(line.split()[3].split("/")[0] for line in lines if " bd" not in line)


def test_reflinks_are_refused_and_copied_instead(attacker_all_tests: Attacker) -> None:
    """btrfs notes each share in metadata that counts for no disk: 1.8 times what the disk is charged."""
    made = "cd /app && head -c 100000 /dev/urandom > shared"
    code, output = attacker_all_tests.run(f"{made} && cp --reflink=always shared clone 2>&1")
    assert (code, "failed to clone" in output) == (1, True), output
    code, output = attacker_all_tests.run("cd /app && cp shared copy && cmp shared copy && rm -f shared copy clone")
    assert code == 0, output
    call = "import os; a = os.open('/app/main.py', 0); b = os.open('/app/to', 66); os.copy_file_range(a, b, 4096)"
    code, output = attacker_all_tests.run(f'python3 -c "{call}"')
    assert (code, "Function not implemented" in output) == (1, True), output
