"""Programs that the launcher starts: what they see, what a fault is called, and the namespaces of their mounts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec
from tests.security.sandbox.test_launcher_protocol import BIND, RUN, SERVER

from builderd.engine.oci.engine.engine import OciEngine
from builderd.linux.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from builderd.sandboxes.model import SandboxState

pytestmark = pytest.mark.root

#: What a program sees of how it was started.
PROBE = r"""
pwd; umask; tr '\0' '\n' < /proc/self/environ; cat /proc/$$/oom_score_adj /proc/$$/timerslack_ns
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Sig(Blk|Ign|Cgt)|Shd)' /proc/self/status
awk '{ $1 = $2 = $3 = ""; gsub(/(master|shared):[0-9]+ /, ""); print }' /proc/$$/mountinfo | grep -F ROOT | sort
cat /proc/$$/cgroup /proc/$$/limits
for one in "$0" "$@"; do echo "[$one]"; done; stat -c %u:%g ROOT/*; cat <&7
[ "$(ps -o sid= -p $$ | tr -d ' ')" = $$ ] && echo leads a session
"""
#: Of version 2, or 1.
ROOT_GROUPS = (Path("/sys/fs/cgroup/cgroup.procs"), Path("/sys/fs/cgroup/cpu/tasks"))
ATTRIBUTES = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


class Started:
    """A launcher."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        with theirs:
            command = [sys.executable, "-c", SERVER, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def run(self, given: dict[int, int] | None = None, **changes: Any) -> dict[str, Any]:
        given = given or {}
        return self.ask({**RUN, **changes, "fds": list(given)}, list(given.values()))

    def ask(self, request: dict[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        socket.send_fds(self._ours, [json.dumps({"id": 5, **request}).encode()], descriptors)
        answer: dict[str, Any] = json.loads(self._ours.recv(1 << 20))
        return answer

    def close(self) -> None:
        self._ours.close()
        assert self._process.wait(60) == 0


@pytest.fixture(scope="module")
def launcher() -> Iterator[Started]:
    started = Started()
    yield started
    started.close()


@pytest.fixture
def mounts(tmp_path: Path) -> list[dict[str, Any]]:
    """Return an idmapped bind, an overlay on it, and a detached one; the overlay is at ``root``."""
    for name in ("source", "lower", "upper", "work", "root"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_text("of the source")
    data = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    bind = {**BIND, "source": f"{tmp_path}/source", "attributes": ATTRIBUTES, "owner": 0}
    return [
        {**bind, "target": f"{tmp_path}/lower"},
        {"kind": "overlay", "target": f"{tmp_path}/root", "flags": 6, "data": data},
        {**bind, "target": f"{tmp_path}/work", "owner": None},
        {"kind": "detach", "target": f"{tmp_path}/work"},
    ]


def seen(launcher: Started, probe: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Return the output of a shell under this launcher, and the launcher's answer."""
    (read, write), (given, end) = os.pipe(), os.pipe()
    os.write(end, b"given\n")
    os.close(end)
    argv = ["/bin/sh", "-c", probe, "first", "two words", "", "\udcff\n'"]
    answer = launcher.run({1: write, 2: write, 7: given}, argv=argv, **changes)
    os.close(write)
    os.close(given)
    with os.fdopen(read, errors="surrogateescape") as output:
        return output.read(), answer


def test_program_is_started_as_asked(launcher: Started, mounts: list[dict[str, Any]]) -> None:
    target = mounts[1]["target"]
    output, answer = seen(
        launcher,
        PROBE.replace("ROOT", target),
        env={"PATH": "/usr/bin:/bin", "QUOTED": 'it\'s "a"\n$HOME \udcff', "LD_PRELOAD": ""},
        cwd="/usr/lib",
        oom_score=17,
        mounts=mounts,
        uid=700_000,
        cgroups=[next(str(file) for file in ROOT_GROUPS if file.exists())],
    )
    assert answer == {"id": 5, "status": 0, "error": ""}
    for part in ("700000:700000", "[two words]", "given", "leads a session", "/usr/lib\n", "\n17\n", "[\udcff\n']"):
        assert part in output
    assert f"{target} rw,nosuid,nodev" in output


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"argv": ["/nowhere/program"]}, "/nowhere/program: No such file or directory"),
        ({"argv": ["/etc/hostname"]}, "/etc/hostname: Permission denied"),
        ({"cwd": "/nowhere"}, "/nowhere: No such file or directory"),
        ({"cgroups": ["/nowhere/tasks"]}, "/nowhere/tasks: No such file or directory"),
        ({"mounts": [BIND | {"source": "/nowhere"}]}, "/nowhere: No such file or directory"),
        # The kernel lets no file of its own show other owners.
        ({"mounts": [BIND | {"source": "/proc", "target": "/mnt", "owner": 0}], "uid": 700_000}, "Invalid argument"),
        ({"mounts": [{"kind": "detach", "target": "/nowhere"}]}, "No such file or directory"),
        ({"mounts": [{"kind": "nofs", "target": "/mnt"}]}, "No such device"),
        ({"terminal": True}, "Inappropriate ioctl for device"),
    ],
)
def test_fault_of_a_start_names_its_error(launcher: Started, changes: dict[str, Any], error: str) -> None:
    answer = launcher.run(**changes)
    assert (answer["status"], error in answer["error"]) == (127, True), answer


def test_program_gets_its_descriptors_and_no_other(launcher: Started) -> None:
    """Each in the place of another's."""
    program = (
        "import os\nfor one in (3, 4, 5, 63): os.write(one, f'{one} {len(os.listdir(\"/proc/self/fd\"))}'.encode())"
    )
    pipes = [os.pipe() for _ in range(4)]
    numbers = [5, 3, 4, 63]
    argv = [sys.executable, "-c", program]
    answer = launcher.run({number: pipe[1] for number, pipe in zip(numbers, pipes, strict=True)}, argv=argv)
    assert answer["status"] == 0
    texts = []
    for read, write in pipes:
        os.close(write)
        with os.fdopen(read) as file:
            texts.append(file.read())
    assert [int(text.split()[0]) for text in texts] == numbers
    # One more is the listed folder.
    assert {text.split()[1] for text in texts} == {"8"}


async def test_start_waiting_for_the_store_does_not_block_others(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    with engine._here.disks._scratch_lock:
        start = asyncio.create_task(engine.sandboxes.start(spec))
        await asyncio.sleep(0.1)
        start.cancel()
        again = asyncio.create_task(engine.sandboxes.start(spec))
        await asyncio.sleep(0.1)
        assert not start.done(), "it would take away what the next start makes"
    with pytest.raises(asyncio.CancelledError):
        await start
    assert (await again).state is SandboxState.RUNNING
    assert (await execute(engine, spec.id, "touch /var/tmp/x", ENGINE_TIMEOUT, 100)).exit_code == 0


#: In a process of one thread, as the launcher is.
SCRIPT = """
import json, os, subprocess
from builderd.engine.oci.runtime.launcher import user_namespaces
from builderd.linux.syscalls import forbid_tracing

def seen(namespace, file):
    command = ["nsenter", f"--user=/proc/self/fd/{namespace}", "--preserve-credentials", "cat", f"/proc/self/{file}"]
    return subprocess.run(command, pass_fds=[namespace], capture_output=True, check=True).stdout.split()

def refused(outside, owners):
    try:
        with user_namespaces(outside, owners):
            return None
    except OSError as error:
        return error.errno

forbid_tracing()
kept = {str(number): str(number) * 3 for number in range(50_000)}
before = len(os.listdir("/proc/self/fd"))
with user_namespaces(700_000, [0, 5000, 0]) as maps:
    found = {owner: [[int(number) for number in seen(one, file)] for file in ("uid_map", "gid_map")]
             for owner, one in maps.items()}
for _ in range(200):
    with user_namespaces(700_000, [0]):
        pass
wrong = refused(700_000, [0, (1 << 32) - 2])
try:
    children = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    children = None
print(json.dumps([found, wrong, children, len(os.listdir("/proc/self/fd")) - before,
                  all(value == name * 3 for name, value in kept.items())]))
"""


def test_each_owner_on_disk_has_a_namespace_and_nothing_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found, wrong, children, descriptors, whole = json.loads(done.stdout)
    assert found == {str(owner): [[owner, 700_000, 65536]] * 2 for owner in (0, 5000)}
    assert wrong == 22, "ids beyond all"
    assert (children, descriptors, whole) == (None, 0, True)
