"""The guard: a shell process that restarts a dead proxy, also while no service runs.

It waits for the master process to exit, and ends when the pid file is gone or when it is killed. The proxy is not its
child, so the proxy survives the guard; the next service starts another guard.

A service may find the proxy dead at the same moment. Two concurrent starts would take each other's port and replace
each other's sockets, so both hold a lock while they start a proxy, and the second one checks again.
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

#: Seconds to wait for a process to end, or for the guard to write its pid file.
PROCESS_TIMEOUT = 10.0
#: Number of reads of an empty command line, and the seconds between them, while a process executes itself again.
_EXEC_TRIES, _EXEC_SECONDS = 100, 0.001
#: Seconds to wait while the guard starts a proxy.
START_LOCK_TIMEOUT = 30
#: The pid file is empty while it is being written. The proxy must not inherit the lock: flock closes it.
#: waitpid (util-linux-extra) returns at once; without it, or if it was killed, tail polls five times a second.
_SCRIPT = """\
echo $$ >"$1"; pid_file=$2; lock=$3; start=$4; shift 4
while [ -e "$pid_file" ]; do
  pid=; read -r pid <"$pid_file"
  [ -n "$pid" ] || { sleep 0.1; continue; }
  waitpid "$pid" || tail --pid="$pid" -s 0.2 -f /dev/null
  flock --close "$lock" sh -c "$start" start "$pid" "$pid_file" "$@" || sleep 1
done
"""
#: Skips a master that has been replaced, and one that lives: then only the wait for it was killed.
_START = """\
now=; read -r now <"$2"; [ "$now" = "$1" ] || exit 0
grep -qsF -e "$2" "/proc/$1/cmdline" && exit 0
shift 2; exec "$@"
"""


async def start(files: ProxyFiles, proxy: Sequence[str]) -> None:
    """Start a guard that starts the proxy by the command ``proxy``, unless one runs. Idempotent."""
    if find_process(files.guard_pid, files) is not None:
        return
    await asyncio.to_thread(_spawn, files, proxy)
    # Before its pid file is written, another call would start a second guard.
    deadline = asyncio.get_running_loop().time() + PROCESS_TIMEOUT
    while find_process(files.guard_pid, files) is None and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def _spawn(files: ProxyFiles, proxy: Sequence[str]) -> None:
    paths = (str(files.guard_pid), str(files.pid), str(files.start_lock))
    subprocess.run(
        ("setsid", "--fork", "sh", "-c", _SCRIPT, "guard", *paths, _START, *proxy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        cwd="/",
        check=True,
    )


@contextlib.asynccontextmanager
async def start_lock(files: ProxyFiles) -> AsyncIterator[None]:
    """Keep the guard from starting a proxy. Raises ``EngineUnavailable`` if the guard's own start does not end."""
    deadline = asyncio.get_running_loop().time() + START_LOCK_TIMEOUT
    with open(files.start_lock, "ab") as lock:  # noqa: ASYNC230, PTH123
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineUnavailable(
                        f"the preview proxy is being started, and has been for {START_LOCK_TIMEOUT} s"
                    ) from None
                await asyncio.sleep(0.01)
            else:
                break
        yield


async def end(files: ProxyFiles) -> None:
    """Kill the guard and its children; the proxy is none of them. Idempotent."""
    pid = find_process(files.guard_pid, files)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        await wait_until_gone(pid)
    files.guard_pid.unlink(missing_ok=True)


def find_process(pid_file: Path, files: ProxyFiles) -> int | None:
    """Return the pid in the file if that process runs with this proxy's configuration, else None."""
    try:
        pid = int(pid_file.read_text())
        arguments = _command_line(pid)
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(files.config) in arguments else None


def _command_line(pid: int) -> Sequence[bytes]:
    """Return the arguments of a live process; a zombie has none.

    A master that has just started executes itself again; at that moment the kernel shows no arguments either.
    """
    process = Path(f"/proc/{pid}")
    for _ in range(_EXEC_TRIES):
        text = (process / "cmdline").read_bytes()
        if text or (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return text.split(b"\0")
        time.sleep(_EXEC_SECONDS)
    return []


async def wait_until_one_ends(*pids: int) -> None:
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


async def wait_until_gone(pid: int) -> bool:
    """Wait until the process is gone; return False after ``PROCESS_TIMEOUT``."""
    deadline = asyncio.get_running_loop().time() + PROCESS_TIMEOUT
    while _is_alive(pid):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _is_alive(pid: int) -> bool:
    """Return True if the process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
