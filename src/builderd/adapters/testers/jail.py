"""The QA jail: runs programs that parse the responses of a hostile app, and can reach only that app.

bubblewrap gives them a network namespace with only loopback, a pid namespace, and a read-only root of the host's
``/usr`` and the virtual environment. They run as a uid that owns no files, with a memory limit. A socket that listens
inside is passed out to the relay.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builderd.adapters.testers.relay import Relay
from builderd.domain.previews import Address

WORKERS = Path(__file__).parent / "workers"
#: A uid that owns no file: above Debian's own ids, below those of the sandboxes.
UID = 899_999
#: Seconds for the jail to become ready.
READY_SECONDS = 10.0
#: Seconds between two checks of the memory.
WATCH_SECONDS = 0.25
MAX_PROCESSES, MAX_FILES = 512, 4096
#: Bytes of the jail's own temporary files.
TMP_BYTES = 256_000_000
MAX_ERRORS = 4_000
#: The virtual environment inside the jail.
VENV = Path("/venv")
#: A folder of every Debian, which is mounted over only in the jail's mount namespace.
STAGE = Path("/mnt")


class JailFailed(Exception):
    """The program failed, or its output cannot be parsed; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """A program to run. ``worker``: file in ``workers/``. Limits in seconds and bytes; None: no limit."""

    worker: str
    request: Mapping[str, Any]
    seconds: float
    memory: int
    output: int = 1_000_000
    address_space: int | None = None


def missing() -> str | None:
    """Return the reason why this machine cannot run jails, or None."""
    for program in ("bwrap", "setpriv", "prlimit", "unshare", "choom"):
        if shutil.which(program) is None:
            return f"{program} is not installed on this machine: run script/setup"
    return None if os.geteuid() == 0 else "the service does not run as root"


def make_argv(job: Job, folders: Mapping[str, Path], channel: int) -> list[str]:
    """Return the command line. ``folders``: folders of the host that are bound inside, by name below ``STAGE``."""
    limits = [f"--nproc={MAX_PROCESSES}", f"--nofile={MAX_FILES}", "--core=0", f"--cpu={int(job.seconds * 4) + 1}"]
    if job.address_space is not None:
        limits.append(f"--as={job.address_space}")
    binds = {"venv": VENV, "workers": Path("/workers"), "base": Path(sys.base_prefix)}
    return [
        *("unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", make_stage(folders), "sh"),
        *("nice", "-n", "15", "choom", "-n", "1000", "--", "prlimit", *limits, "--"),
        *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs", "--"),
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"),  # noqa: S108
        *("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
        *("--symlink", "usr/bin", "/bin", "--ro-bind-try", "/etc/fonts", "/etc/fonts"),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"),
        *("--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--size", str(TMP_BYTES), "--tmpfs", "/dev/shm"),  # noqa: S108
        *(word for name in folders for word in ("--ro-bind", str(STAGE / name), str(binds[name]))),
        *("--chdir", "/tmp", "--hostname", "qa", "--"),  # noqa: S108
        *(str(VENV / "bin" / "python"), "-I", "/workers/start.py", str(channel), f"/workers/{job.worker}"),
    ]


def make_stage(folders: Mapping[str, Path]) -> str:
    """Return a shell script that binds the folders below ``STAGE`` and runs its arguments.

    An unprivileged program could not reach them if a parent folder is open to root only. Runs in a mount namespace.
    """
    made = [f"mount -t tmpfs -o mode=755,size=64k tmpfs {STAGE}"]
    for name, path in folders.items():
        made += [f"mkdir {STAGE / name}", f"mount --bind {shlex.quote(str(path))} {STAGE / name}"]
    return " && ".join([*made, 'exec "$@"'])


async def run(job: Job, address: Address) -> Any:
    """Run the program and parse its JSON output. Raises ``JailFailed``."""
    inner, outer = socket.socketpair()
    try:
        with inner:
            process = await asyncio.create_subprocess_exec(
                *make_argv(job, _folders(), inner.fileno()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(inner.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        try:
            return _parse(await _converse(process, job, outer, address))
        finally:
            await _end(process)
    finally:
        outer.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the jail and drain its pipes: asyncio does not report an exit while a pipe is unread."""
    with suppress(ProcessLookupError):
        process.kill()
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(65_536):
            pass
    await process.wait()


def _folders() -> dict[str, Path]:
    folders = {"venv": Path(sys.prefix), "workers": WORKERS}
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        folders["base"] = Path(sys.base_prefix)
    return folders


async def _converse(process: asyncio.subprocess.Process, job: Job, channel: socket.socket, address: Address) -> bytes:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    errors = asyncio.create_task(_last(process.stderr))
    watch = asyncio.create_task(_watch(process.pid, job.memory))
    read = asyncio.create_task(_read(process.stdout, job.output))
    try:
        async with asyncio.timeout(job.seconds + READY_SECONDS):
            listener = await asyncio.to_thread(_receive, channel)
            async with Relay(listener, address):
                process.stdin.write(json.dumps(dict(job.request)).encode())
                process.stdin.close()
                async with asyncio.timeout(job.seconds):
                    await asyncio.wait({read, watch}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        output = await read
        async with asyncio.timeout(READY_SECONDS):
            code = await process.wait()
        if code:
            raise JailFailed(f"it ended with exit code {code}: {await errors}")
    except TimeoutError:
        raise JailFailed(f"it did not end within {job.seconds:g} seconds") from None
    except (ConnectionError, BrokenPipeError):
        raise JailFailed(f"it could not be begun: {await errors}") from None
    else:
        return output
    finally:
        for task in (errors, watch, read):
            task.cancel()
        await asyncio.gather(errors, watch, read, return_exceptions=True)


def _receive(channel: socket.socket) -> socket.socket:
    """Receive the socket that listens inside. Raises ``ConnectionError`` if none comes."""
    channel.settimeout(READY_SECONDS)
    try:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    except OSError as error:
        raise ConnectionError(str(error)) from error
    if not fds:
        raise ConnectionError("no socket came")
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    return listener


async def _read(stream: asyncio.StreamReader, limit: int) -> bytes:
    output = bytearray()
    while chunk := await stream.read(65_536):
        output += chunk
        if len(output) > limit:
            raise JailFailed(f"it wrote more than {limit} bytes")
    return bytes(output)


async def _last(stream: asyncio.StreamReader) -> str:
    """Read to the end and return the last ``MAX_ERRORS`` bytes as text."""
    kept = b""
    while chunk := await stream.read(65_536):
        kept = (kept + chunk)[-MAX_ERRORS:]
    return kept.decode(errors="replace").strip()


async def _watch(pid: int, limit: int) -> None:
    """Check the memory of all processes of the jail until cancelled. Raises ``JailFailed`` over the limit."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        held = await asyncio.to_thread(memory_of, pid)
        if held > limit:
            raise JailFailed(f"it took more than {limit / 1e6:.0f} MB of memory")


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process and its descendants; shared pages count for each."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            resident[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        total += resident.get(one, 0)
        waiting += children.get(one, [])
    return total


def _parse(output: bytes) -> Any:
    try:
        return json.loads(output)
    except (ValueError, RecursionError) as error:
        raise JailFailed(f"what it wrote cannot be read ({type(error).__name__})") from None
