"""The HAProxy process: found again, started, reloaded, ended.

It runs as a master with one worker, in a session of its own, so that it goes on when the service ends or is killed; the
next service finds it by its command socket, which lies in the data directory: two services never meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builderd.adapters.previews.haproxy import guarding, runtime_api
from builderd.adapters.previews.haproxy.config import DESCRIPTION, Host
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.runtime_api import ProxyGone
from builderd.domain.errors import EngineUnavailable
from builderd.domain.preflight import SEARCH_PATH

#: Seconds for a start, a reload, or the end of a process; each takes a few hundredths.
PATIENCE = 30.0
#: Seconds until a master that lives has opened its socket: it executes itself anew once its worker runs.
SETTLING = 3.0
#: Beside two per visitor (the visitor's and the app's) the proxy needs some descriptors for itself.
OWN_DESCRIPTORS = 200
#: Of the longest: ``sun_path`` has 108 bytes, of which HAProxy wants some for a socket's name while it is made.
MAX_SOCKET_PATH = 94
#: What ends a word of HAProxy's configuration or of its arguments, however it is quoted.
STRANGE = frozenset("\"'$,)") | {chr(code) for code in range(32)}
#: Debian's package makes the first; the second is everywhere.
USERS = ("haproxy", "nobody")

_ALERT = re.compile(r"^\[ALERT\]\s+\(\d+\) : (.*)$", re.MULTILINE)
_DESCRIPTION = re.compile(rf"^[Dd]escription: {DESCRIPTION} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Processes:
    """Process ids: the master, and the workers that a reload has left to finish what they serve."""

    master: int
    old_workers: tuple[int, ...]


def host(options: ProxyOptions) -> Host:
    """What this machine and this user allow."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = options.max_connections
    if descriptors != resource.RLIM_INFINITY:
        room = max(1, min(room, (descriptors - OWN_DESCRIPTORS) // 2))
    return Host(room, _user() if os.geteuid() == 0 else None)


def _user() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in USERS if name in known), None)


async def find(files: ProxyFiles) -> Processes | None:
    """The running proxy of this directory, or None. One that has just started or reloaded is waited for."""
    deadline = asyncio.get_running_loop().time() + SETTLING
    while True:
        with contextlib.suppress(ProxyGone):
            return parse_processes(await runtime_api.ask(files.master_socket, "show proc"))
        master = _master_by_file(files)
        if master is None:
            return None
        if asyncio.get_running_loop().time() > deadline:
            return Processes(master, ())
        await asyncio.sleep(0.002)


def parse_processes(answer: str) -> Processes:
    """Lines of ``<pid> <type> <reloads> …`` under headings that begin with ``#`` (management guide, 9.4.1)."""
    heading, master, old = "", 0, []
    for line in answer.splitlines():
        if line.startswith("#"):
            heading = line
            continue
        words = line.split()
        if len(words) > 1 and words[1] == "master":
            master = int(words[0])
        elif heading.startswith("# old workers") and words:
            old.append(int(words[0]))
    return Processes(master, tuple(old))


async def started_with(files: ProxyFiles) -> str:
    """The digest of the configuration that the running worker has; "" when it tells none. Raises ``ProxyGone``."""
    match = _DESCRIPTION.search(await runtime_api.ask(files.admin_socket, "show info"))
    return match[1] if match else ""


async def start(options: ProxyOptions, files: ProxyFiles) -> None:
    """Start a proxy; it has read its configuration and holds its port when this returns.

    Raises ``EngineUnavailable`` with what it says.
    """
    argv = command(program(options), files)
    try:
        told = await asyncio.to_thread(_run, argv)
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"the preview proxy did not start within {PATIENCE:.0f} s: {argv}") from None
    if told is not None:
        raise EngineUnavailable(explain(told, options))


def check_place(files: ProxyFiles) -> None:
    """Raises ``EngineUnavailable`` where the proxy's files cannot be."""
    if len(os.fsencode(files.wake_socket)) > MAX_SOCKET_PATH:
        raise EngineUnavailable(
            f"the path of the preview's sockets is too long for Unix: {files.wake_socket} has more than "
            f"{MAX_SOCKET_PATH} bytes; choose a shorter data directory"
        )
    if strange := sorted(STRANGE & set(str(files.directory))):
        raise EngineUnavailable(
            f"HAProxy cannot be told of a path with {' '.join(map(repr, strange))} in it: {files.directory}; choose "
            "another data directory"
        )


def _run(argv: Sequence[str]) -> str | None:
    """None once it is in the background, else what it said as it failed. It inherits nothing: no port, no file.

    Into a file, not a pipe: the background process would hold that open.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as told:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
            timeout=PATIENCE,
            check=False,
        )
        told.seek(0)
        return told.read() if done.returncode else None


def program(options: ProxyOptions) -> str:
    """Where HAProxy is. Raises ``EngineUnavailable`` when it is nowhere."""
    found = shutil.which(options.program) or shutil.which(options.program, path=SEARCH_PATH)
    if found is None:
        raise EngineUnavailable(
            f"the previews need HAProxy, and there is no program {options.program}: install Debian's package haproxy, "
            "or run script/setup"
        )
    return str(Path(found).absolute())


def command(haproxy: str, files: ProxyFiles) -> tuple[str, ...]:
    """``-W`` master and worker, ``-D`` in the background once the port is held, ``-S`` the master's own socket."""
    master_socket = f"{files.master_socket},mode,600"
    return (haproxy, "-W", "-D", "-S", master_socket, "-p", str(files.pid), "-f", str(files.config))


def explain(told: str, options: ProxyOptions) -> str:
    """What HAProxy's own words come to for whoever started the service."""
    alerts = _ALERT.findall(told)
    words = "; ".join(alerts) or told.strip() or "it says nothing"
    if "Address already in use" in words:
        return (
            f"the preview cannot listen on {options.host} port {options.port}, which another program has taken: stop "
            "that one, or choose another port with --preview-port"
        )
    if "Permission denied" in words and "bind" in words:
        return (
            f"the preview may not listen on {options.host} port {options.port}: run as root, or choose one above 1023"
        )
    return f"the preview proxy does not start: {words}"


async def reload(options: ProxyOptions, files: ProxyFiles) -> None:
    """Have a new worker take over with the configuration on disk; what is in flight is finished by the old one.

    Raises ``EngineUnavailable`` when the new configuration does not work; then the old worker serves on.
    """
    answer = await runtime_api.ask(files.master_socket, "reload")
    if not answer.startswith("Success=1"):
        raise EngineUnavailable(explain(answer, options))


async def end(files: ProxyFiles) -> None:
    """End the guard, master and workers at once, and wait until they are gone. Idempotent."""
    await guarding.end(files)
    found = await find(files)
    if found is None:
        return
    _signal(found.master, signal.SIGTERM)
    if not await guarding.gone(found.master):
        # Its workers go with it: they end when the line to the master breaks.
        _signal(found.master, signal.SIGKILL)
        await guarding.gone(found.master)


def _master_by_file(files: ProxyFiles) -> int | None:
    """The master that wrote the pid file, when it still runs with this very configuration."""
    return guarding.running(files.pid, files)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
