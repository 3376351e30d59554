"""Programs that the launcher starts by ``start.c``: as by its own fork, word by word, with the same faults."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.security.sandbox.test_launcher_protocol import BIND, RUN, SERVER

from builderd.adapters.engines.oci.runtime.joiner import ensure_joiner
from builderd.linux.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY

pytestmark = pytest.mark.root

LAUNCHER = "builderd.adapters.engines.oci.runtime.launcher"

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
    """A launcher, with or without the compiled program."""

    def __init__(self, joiner: str, launcher: Sequence[str] = (sys.executable, "-c", SERVER)) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        with theirs:
            command = [*launcher, str(theirs.fileno()), joiner]
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
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Started, Started]]:
    """Return launchers that start programs by a fork, and by the program."""
    joiner = ensure_joiner(tmp_path_factory.mktemp("host"))
    assert joiner
    launchers = Started(""), Started(str(joiner))
    yield launchers
    for one in launchers:
        one.close()


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


def test_program_is_started_as_by_a_fork(both: tuple[Started, Started], mounts: list[dict[str, Any]]) -> None:
    # Of the other mounts of the host, some come and go.
    probe = PROBE.replace("ROOT", mounts[1]["target"])
    changes = {
        "env": {"PATH": "/usr/bin:/bin", "QUOTED": 'it\'s "a"\n$HOME \udcff', "LD_PRELOAD": ""},
        "cwd": "/usr/lib",
        "oom_score": 17,
        "mounts": mounts,
        "uid": 700_000,
        "cgroups": [next(str(file) for file in ROOT_GROUPS if file.exists())],
    }
    (forked, _), (spawned, answer) = (seen(one, probe, **changes) for one in both)
    # The kernel names the overlay's id from its second mount on.
    assert re.sub(r",uuid=\w+", "", spawned) == re.sub(r",uuid=\w+", "", forked)
    assert answer == {"id": 5, "status": 0, "error": ""}
    for part in ("700000:700000", "[two words]", "given", "leads a session", "/usr/lib\n", "\n17\n", "[\udcff\n']"):
        assert part in spawned
    assert f"{mounts[1]['target']} rw,nosuid,nodev" in spawned


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"argv": ["/nowhere/program"]}, "/nowhere/program: No such file or directory"),
        ({"argv": ["/etc/hostname"]}, "/etc/hostname: Permission denied"),
        ({"cwd": "/nowhere"}, "/nowhere: No such file or directory"),
        ({"cgroups": ["/nowhere/tasks"]}, "/nowhere/tasks: No such file or directory"),
        ({"oom_score": 5000}, "/proc/self/oom_score_adj: Invalid argument"),
        ({"mounts": [BIND | {"source": "/nowhere"}]}, "open /nowhere: No such file or directory"),
        ({"mounts": [BIND | {"source": "/etc", "target": "/nowhere"}]}, "bind on /nowhere: No such file or directory"),
        # The kernel lets no file of its own show other owners.
        (
            {"mounts": [BIND | {"source": "/proc", "target": "/mnt", "owner": 0}], "uid": 700_000},
            "set attributes of /proc: Invalid argument",
        ),
        ({"mounts": [{"kind": "detach", "target": "/nowhere"}]}, "unmount /nowhere: No such file or directory"),
        ({"mounts": [{"kind": "nofs", "target": "/mnt"}]}, "mount on /mnt: No such device"),
        (
            {"mounts": [BIND | {"source": "/etc", "target": "/" + "x" * 5000}]},
            "bind on " + "x" * 192 + ": File name too long",
        ),
        ({"cwd": "/" + "x" * 5000}, "x" * 200 + ": File name too long"),
        ({"terminal": True}, "control the terminal: Inappropriate ioctl for device"),
    ],
)
def test_fault_of_a_start_names_its_path_and_error(
    both: tuple[Started, Started], changes: dict[str, Any], error: str
) -> None:
    assert both[1].run(**changes) == {"id": 5, "status": 127, "error": error}
    forked = both[0].run(**changes)
    assert (forked["status"], error.rpartition(": ")[2] in forked["error"]) == (127, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ["/bin/true", "x" * 125_000]},
        {"env": {"a=": "b"}},
        {"env": {"A": "\ud800"}},
        {"mounts": [BIND | {"attributes": -1}]},
        {"mounts": [BIND | {"source": "\ud800"}]},
    ],
)
def test_words_that_no_program_takes_are_answered_alike(both: tuple[Started, Started], changes: dict[str, Any]) -> None:
    forked, spawned = (one.run(**changes) for one in both)
    assert spawned["status"] == forked["status"]
    assert bool(spawned["error"]) == bool(forked["error"])


def test_program_of_this_version_is_used(tmp_path: Path) -> None:
    joiner = ensure_joiner(tmp_path)
    with contextlib.closing(Started(str(joiner), [sys.executable, "-m", LAUNCHER])) as started:
        # A fork has other words.
        assert started.run(terminal=True)["error"] == "control the terminal: Inappropriate ioctl for device"


@pytest.mark.parametrize("suffix", ["", "-00000000"], ids=["of before", "of other sources"])
def test_program_that_another_version_compiled_is_not_used(tmp_path: Path, suffix: str) -> None:
    """The service of before starts this version's launcher while it is being upgraded."""
    program, marker = tmp_path / f"0123456789abcdef{suffix}", tmp_path / "executed"
    program.write_text(f"#!/bin/sh\ntouch {marker}\nexit 127\n")
    program.chmod(0o755)
    null = os.open("/dev/null", os.O_RDWR)
    with contextlib.closing(Started(str(program), [sys.executable, "-m", LAUNCHER])) as started:
        assert started.run() == {"id": 5, "status": 0, "error": ""}
        answer = started.ask({"op": "join", "name": "one"}, [null] * 5)
    os.close(null)
    assert answer == {"id": 5, "no_joiner": "No such file or directory"}
    assert not marker.exists()


def test_program_gets_its_descriptors_and_no_other(both: tuple[Started, Started]) -> None:
    """Each in the place of another's."""
    program = (
        "import os\nfor one in (3, 4, 5, 63): os.write(one, f'{one} {len(os.listdir(\"/proc/self/fd\"))}'.encode())"
    )
    for launcher in both:
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


@pytest.mark.parametrize(
    "words",
    [
        ["start"],
        ["start", "x"],
        ["start", "2"],
        ["start", "2", "/", "0", "0", "9"],
        ["start", "2", "/", "0", "0", "0", "2", "bind", "/a"],
        ["start", "2", "/", "0", "0", "0", "0", "99", "0", "0"],
        ["start", "2", "/", "0", "0", "0", "0", "1", "0"],
        ["start", "2", "/", "0", "0", "0", "0", "1", "0", "77"],
        ["start", "2", "/", "0", "0", "0", "0", "0"],
        ["start", "2", "/", "0", "0", "9" * 30],
        ["limit"],
        ["limit", "0", "/proc/sys/user/max_inotify_watches", "1"],
        ["limit", "77", "FILE", "x"],
    ],
)
def test_damaged_words_begin_no_program(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    joiner, file = ensure_joiner(tmp_path_factory.getbasetemp() / "host"), tmp_path / "file"
    file.write_text("unchanged")
    words = [str(file) if word == "FILE" else word for word in words]
    done = subprocess.run([str(joiner), *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout, file.read_text()) == (127, b"", "unchanged")
    # Before it has a report it says nothing, as to words that it does not know.
    assert done.stderr.startswith(b"failed ") if words[:2] == ["start", "2"] else done.stderr == b""
