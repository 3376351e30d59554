"""The jail: programs that interpret what a hostile app answers run in it, and reach that one app only.

bubblewrap gives them a network with nothing but loopback, their own processes, and a root of the host's ``/usr`` and
the virtual environment, read-only; they run as a uid that owns nothing, with a memory that is watched. A socket that
listens inside is handed out to the relay.
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
#: Owns no file, and is nobody else: above Debian's own ids, below those of the sandboxes.
UID = 899_999
#: How long the jail may take to be ready, in seconds.
READY_SECONDS = 10.0
#: How often the memory is looked at.
WATCH_SECONDS = 0.25
MAX_PROCESSES, MAX_FILES = 512, 4096
#: Bytes of the jail's own temporary files.
TMP_BYTES = 256_000_000
MAX_ERRORS = 4_000
#: Found by the jail's own Python; the virtual environment is bound there.
VENV = Path("/venv")
#: A folder that every Debian has, and that is covered in the jail's own mount namespace alone.
STAGE = Path("/mnt")


class JailFailed(Exception):
    """The program did not come to an end, or to none that can be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """``worker`` is a file of ``workers/``. Limits in seconds and bytes; ``address_space`` None: not limited."""

    worker: str
    request: Mapping[str, Any]
    seconds: float
    memory: int
    output: int = 1_000_000
    address_space: int | None = None


def missing() -> str | None:
    """None when jails can be made here, else why not."""
    for program in ("bwrap", "setpriv", "prlimit", "unshare", "choom"):
        if shutil.which(program) is None:
            return f"{program} is not installed on this machine: run script/setup"
    return None if os.geteuid() == 0 else "the service does not run as root"


def make_argv(job: Job, folders: Mapping[str, Path], channel: int) -> list[str]:
    """The command. ``folders`` are those of the host that are seen inside, by the name of their place on the stage."""
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
    """A script for the shell that puts folders where a program without any privilege finds them, and goes on.

    They may lie below others that only root can walk through. All of it is in a mount namespace of its own.
    """
    made = [f"mount -t tmpfs -o mode=755,size=64k tmpfs {STAGE}"]
    for name, path in folders.items():
        made += [f"mkdir {STAGE / name}", f"mount --bind {shlex.quote(str(path))} {STAGE / name}"]
    return " && ".join([*made, 'exec "$@"'])


async def run(job: Job, address: Address) -> Any:
    """What the program wrote, as JSON. Raises ``JailFailed``."""
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
    """Kill it with all that it started. What it had still to say is taken away: unread, it never counts as ended."""
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
    """The socket that listens inside. Raises ``ConnectionError`` when none comes."""
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
    """The end of what it wrote."""
    kept = b""
    while chunk := await stream.read(65_536):
        kept = (kept + chunk)[-MAX_ERRORS:]
    return kept.decode(errors="replace").strip()


async def _watch(pid: int, limit: int) -> None:
    """Returns never. Raises ``JailFailed`` when all of the jail's processes together hold more."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        held = await asyncio.to_thread(memory_of, pid)
        if held > limit:
            raise JailFailed(f"it took more than {limit / 1e6:.0f} MB of memory")


def memory_of(pid: int) -> int:
    """Resident bytes of a process and of all below it; what several share counts for each."""
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
