"""podman beside builderd: containers in the same base root file system, with crun, where the machine lets it run.

Where control groups of both versions are mounted, crun works only without the newer one, and then podman only without
control groups: so its commands run in a mount namespace of their own, and its containers have no limits. That makes
them start a little sooner than a user's would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

UNIFIED = Path("/sys/fs/cgroup/unified")
#: What podman's network leaves in the packet filter.
TABLE = ("inet", "netavark")
#: Against hanging only.
IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """Milliseconds, and what the command printed."""

    took: float
    output: str


class Podman:
    """Runs one command of podman's at a time, timed where it runs."""

    def __init__(self, side: subprocess.Popen[str], folder: str) -> None:
        self._side = side
        self._folder = folder.encode()

    def start(self, *words: str, command: Sequence[str]) -> str:
        """A container of the base root file system; its name."""
        root = max(Path("/var/lib/builderd-host/bases").glob("*/root"))
        return self("run", "-d", "--cgroups=disabled", *words, "--rootfs", f"{root}:O", *command).output.strip()

    def __call__(self, *words: str) -> Run:
        """Errors: RuntimeError with what podman said."""
        assert self._side.stdin
        assert self._side.stdout
        self._side.stdin.write(json.dumps(words) + "\n")
        self._side.stdin.flush()
        took, status, output, error = json.loads(self._side.stdout.readline())
        if status:
            raise RuntimeError(f"podman {' '.join(words)}: {error[-500:]}")
        return Run(took, output)

    def wait_until_idle(self) -> None:
        """Wait until podman's own processes have ended: after an exec, its clean-up runs on for 20 ms of CPU or more.

        Raises ``TimeoutError``.
        """
        deadline = time.monotonic() + IDLE_SECONDS
        while any(self._is_ours(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"podman's clean-up still runs after {IDLE_SECONDS:g} s")
            time.sleep(0.01)

    def _is_ours(self, cmdline: Path) -> bool:
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:  # it has ended
            return False
        return words[0].endswith(b"podman") and any(self._folder in word for word in words)


@contextlib.contextmanager
def podman() -> Iterator[Podman | None]:
    """None where it is not installed."""
    if shutil.which("podman") is None:
        print("podman is not installed: script/setup --bench", file=sys.stderr)
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="builderd-podman-", dir="/var/tmp") as folder:
        command = ["unshare", "-m", "--propagation", "slave", sys.executable, "-m", "benchmarks.podman", folder]
        had_table = _has_table()
        side = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        made = Podman(side, folder)
        try:
            yield made
        finally:
            side.communicate()
            made.wait_until_idle()  # its clean-up writes into the folder, which is removed next
            if not had_table and _has_table():
                subprocess.run(["nft", "delete", "table", *TABLE], check=True)


def _has_table() -> bool:
    return subprocess.run(["nft", "list", "table", *TABLE], capture_output=True, check=False).returncode == 0


def _serve(folder: Path) -> None:
    """For each line of input, the words of a command, a line of output."""
    if UNIFIED.is_mount():
        subprocess.run(["umount", str(UNIFIED)], check=True)
    places = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
    base = ["podman", *places, "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "crun"]
    for line in sys.stdin:
        begun = time.perf_counter()
        done = subprocess.run([*base, *json.loads(line)], capture_output=True, text=True, check=False)
        took = (time.perf_counter() - begun) * 1000
        print(json.dumps([took, done.returncode, done.stdout, done.stderr]), flush=True)
    subprocess.run([*base, "rm", "-f", "-a", "-t", "0"], capture_output=True, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    _serve(parser.parse_args().folder)
