"""The guard: a shell that starts the proxy again when it has died, also while no service runs.

It sleeps on the master's process and ends when the pid file has gone, or when it is told to. The proxy is never its
child, so nothing ends with it; the next service starts another one.

A service may find the proxy dead in the same moment. Two that start at once would take each other's port and replace
each other's sockets, so they take turns by a lock, and the second looks again whether there is anything to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.domain.errors import EngineUnavailable

#: Seconds that a process may take to end.
PATIENCE = 10.0
#: How often, and after how many seconds each, a process is asked again for its command line while it executes itself.
_EXEC_TRIES, _EXEC_SECONDS = 100, 0.001
#: Seconds that the guard may take to start a proxy.
TURN_SECONDS = 30
#: The pid file is empty for a moment while it is written. The proxy must not keep the lock: it is closed for it.
#: waitpid (util-linux-extra) wakes up at once; where it is missing or was killed, tail looks five times a second.
_SCRIPT = """\
echo $$ >"$1"; pid_file=$2; turn=$3; start=$4; shift 4
while [ -e "$pid_file" ]; do
  pid=; read -r pid <"$pid_file"
  [ -n "$pid" ] || { sleep 0.1; continue; }
  waitpid "$pid" || tail --pid="$pid" -s 0.2 -f /dev/null
  flock --close "$turn" sh -c "$start" start "$pid" "$pid_file" "$@" || sleep 1
done
"""
#: A master that another has replaced is none of its business, nor is one that lives: only the wait for it was killed.
_START = """\
now=; read -r now <"$2"; [ "$now" = "$1" ] || exit 0
grep -qsF -e "$2" "/proc/$1/cmdline" && exit 0
shift 2; exec "$@"
"""


async def begin(files: ProxyFiles, proxy: Sequence[str]) -> None:
    """See that a guard is there, which starts the proxy by this command. Idempotent."""
    if running(files.guard, files) is not None:
        return
    await asyncio.to_thread(_begin, files, proxy)
    # Until it has written its file, whoever looks for a guard would begin a second one.
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while running(files.guard, files) is None and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def _begin(files: ProxyFiles, proxy: Sequence[str]) -> None:
    places = (str(files.guard), str(files.pid), str(files.turn))
    subprocess.run(
        ("setsid", "--fork", "sh", "-c", _SCRIPT, "guard", *places, _START, *proxy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        cwd="/",
        check=True,
    )


@contextlib.asynccontextmanager
async def turn(files: ProxyFiles) -> AsyncIterator[None]:
    """The guard starts nothing meanwhile. Raises ``EngineUnavailable`` when its own start does not end."""
    deadline = asyncio.get_running_loop().time() + TURN_SECONDS
    with open(files.turn, "ab") as lock:  # noqa: ASYNC230, PTH123
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineUnavailable(
                        f"the preview proxy is being started, and has been for {TURN_SECONDS} s"
                    ) from None
                await asyncio.sleep(0.01)
            else:
                break
        yield


async def end(files: ProxyFiles) -> None:
    """End the guard with what it waits on, and nothing else. Idempotent."""
    pid = running(files.guard, files)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        await gone(pid)
    files.guard.unlink(missing_ok=True)


def running(pid_file: Path, files: ProxyFiles) -> int | None:
    """The process that wrote this file, when it still runs with the proxy's very configuration."""
    try:
        pid = int(pid_file.read_text())
        words = _command_line(pid)
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(files.config) in words else None


def _command_line(pid: int) -> Sequence[bytes]:
    """Read the words of a live process; a zombie has none.

    A master that has just started executes itself anew. In that moment the kernel shows no words either.
    """
    process = Path(f"/proc/{pid}")
    for _ in range(_EXEC_TRIES):
        text = (process / "cmdline").read_bytes()
        if text or (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return text.split(b"\0")
        time.sleep(_EXEC_SECONDS)
    return []


async def until_one_ends(*pids: int) -> None:
    """Return as soon as one of these processes has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    descriptors: list[int] = []
    try:
        for pid in pids:
            descriptors.append(os.pidfd_open(pid))
            loop.add_reader(descriptors[-1], ended.set)
        await ended.wait()
    except ProcessLookupError:
        return
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
            os.close(descriptor)


async def gone(pid: int) -> bool:
    """Wait until the process is gone; False when it is not in time."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while _lives(pid):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _lives(pid: int) -> bool:
    """Whether the process is there and no zombie that nobody has collected yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
