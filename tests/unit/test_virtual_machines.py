"""script/virtual-machines starts QEMU for each machine, ends what it started, and leaves other processes alone.

QEMU and ssh are played by small programs.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.parts import ROOT

SCRIPT = ROOT.parent / "script/virtual-machines"
QEMU = """\
#!/bin/bash
trap 'exit 0' TERM
while :; do sleep 0.05; done
"""
PROGRAMS = {
    "qemu-system-x86_64": QEMU,
    # The last argument is the disk.
    "qemu-img": '#!/bin/bash\ntouch "${@: -1}"\n',
    # Answers once its QEMU is there, and repeats the command that it was given.
    "ssh": '#!/bin/bash\nwhile [ "$1" != root@127.0.0.1 ]; do shift; done; shift; echo "ran: $*"\n',
    **dict.fromkeys(("mmdebstrap", "mkfs.ext4", "ssh-keygen", "scp"), "#!/bin/bash\nexit 9\n"),
}


class Machines:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "machines"
        self.folder.mkdir()
        (self.folder / "image").touch()
        programs = folder / "programs"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "BUILDERD_VM_DIR": str(self.folder), "BUILDERD_VM_PORT": "3310"}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, *words], capture_output=True, text=True, env=self._env, timeout=60, check=False)

    def pid(self, number: int) -> int:
        return int((self.folder / f"node{number}/pid").read_text())

    def arguments(self, number: int) -> str:
        return Path(f"/proc/{self.pid(number)}/cmdline").read_text().replace("\0", " ")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    made("down")


def runs(pid: int) -> bool:
    """Return whether the process is there and no zombie, which waits for a parent that is not here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_machines_share_one_network_with_addresses_of_their_own(machines: Machines) -> None:
    assert machines("up", "2").returncode == 0
    first, second = machines.arguments(1), machines.arguments(2)
    group = re.compile(r"mcast=\S+,localaddr=127\.0\.0\.1")
    assert group.findall(first) == group.findall(second) != []
    assert "mac=52:54:00:97:00:01" in first
    assert "mac=52:54:00:97:00:02" in second
    assert "hostfwd=tcp:127.0.0.1:3311-:22" in first
    assert "hostfwd=tcp:127.0.0.1:3312-:22" in second
    assert "systemd.hostname=node1" in first
    assert "systemd.hostname=node2" in second
    assert machines("run", "2", "uname", "-a").stdout == "ran: export LANG=C.UTF-8; cd /root; uname -a\n"


def test_down_of_machines_ends_them_and_keeps_the_image(machines: Machines) -> None:
    machines("up", "2")
    pids = [machines.pid(1), machines.pid(2)]
    assert machines("down").returncode == 0
    assert not any(map(runs, pids))
    assert [path.name for path in machines.folder.iterdir() if path.is_dir()] == []
    assert (machines.folder / "image").exists()
    assert machines("remove").returncode == 0
    assert not machines.folder.exists()


def test_process_that_got_the_number_of_an_ended_machine_is_left_alone(machines: Machines) -> None:
    machines("up", "1")
    machines("kill", "1")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (machines.folder / "node1/pid").write_text(str(stranger.pid))
        assert "\toff\n" in machines("status").stdout
        machines("down")
        assert stranger.poll() is None
        stranger.kill()


def test_machine_that_cannot_be_is_refused_with_those_that_are(machines: Machines) -> None:
    machines("up", "1")
    for words in (("run", "3", "true"), ("kill", "../x"), ("start",)):
        refused = machines(*words)
        assert refused.returncode == 1
        assert "there are: 1;" in refused.stderr
    for count in ("0", "10", "x"):
        assert "COUNT is 1 to 9" in machines("up", count).stderr
    assert "machines have this image" in machines("install", "true").stderr
    assert runs(machines.pid(1))


def test_remove_keeps_what_the_script_did_not_make(machines: Machines) -> None:
    (machines.folder / "node_modules").mkdir()
    (machines.folder / "notes").touch()
    machines("up", "1")
    removed = machines("remove")
    assert removed.returncode == 1
    assert "other files, which are kept: node_modules notes" in removed.stderr
    assert {path.name for path in machines.folder.iterdir()} == {"node_modules", "notes"}


def test_folder_without_machines_is_left_alone(machines: Machines) -> None:
    """BUILDERD_VM_DIR may name a home, by mistake."""
    (machines.folder / "node1").mkdir()
    for command in ("down", "remove"):
        refused = machines(command)
        assert refused.returncode == 1
        assert "nothing is removed" in refused.stderr
    assert {path.name for path in machines.folder.iterdir()} == {"image", "node1"}
    (machines.folder / "node1").rmdir()


def test_folder_that_others_can_write_to_is_refused(machines: Machines) -> None:
    """An image, or a link in place of the lock, may be theirs: root would boot the one and write to the other."""
    machines.folder.chmod(0o777)
    for command in ("up", "status", "remove"):
        refused = machines(command)
        assert refused.returncode == 1
        assert "no folder of yours alone" in refused.stderr
    assert {path.name for path in machines.folder.iterdir()} == {"image"}
