"""The HAProxy process: find, start, reload and end it.

It runs as a master with one worker, in a session of its own, so it survives the service; the next service finds it by
its command socket in the data directory, so two services never share a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from builderd.core.errors import EngineUnavailable
from builderd.engine.inventory import SEARCH_PATH, PreflightCheck
from builderd.linux import atomic_files, processes
from builderd.linux.processes import Process
from builderd.previews.haproxy import pages, pause, runtime_api
from builderd.previews.haproxy.config import DESCRIPTION, Configuration, Host
from builderd.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.previews.haproxy.runtime_api import ProxyGone

#: Seconds that a start may take; it takes a few hundredths.
START_TIMEOUT = 30.0
#: Seconds to wait for a process to end.
END_TIMEOUT = 10.0
#: Beside two per visitor (the visitor's and the app's) the proxy needs some descriptors for itself.
OWN_DESCRIPTORS = 200
#: ``sun_path`` has 108 bytes, of which HAProxy needs some for a socket's temporary name.
MAX_SOCKET_PATH = 94
#: Characters that end a word of HAProxy's configuration or arguments, even within quotes.
FORBIDDEN_CHARACTERS = frozenset("\"'$,)") | {chr(code) for code in range(32)}
#: Debian's package creates the first; the second exists on every machine.
USERS = ("haproxy", "nobody")

_ALERT = re.compile(r"^\[ALERT\]\s+\(\d+\) : (.*)$", re.MULTILINE)
#: Among the processes that the master lists (management guide, 9.4.1).
_OLD_WORKER = re.compile(r"^# old workers\n\d", re.MULTILINE)
_DESCRIPTION = re.compile(rf"^[Dd]escription: {DESCRIPTION} (\S+)$", re.MULTILINE)
_PID = re.compile(r"^Pid: (\d+)$", re.MULTILINE)


def host(options: ProxyOptions) -> Host:
    """Return the connection limit of this machine and the user that the worker becomes."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = options.max_connections
    if descriptors != resource.RLIM_INFINITY:
        connections = max(1, min(connections, (descriptors - OWN_DESCRIPTORS) // 2))
    return Host(connections, worker_user())


def worker_user() -> str | None:
    """Return the user that the worker becomes if root starts it, None for the service's own."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in USERS if name in known), None)


def find_process(pid_file: Path, files: ProxyFiles) -> Process | None:
    """Return the process of the pid file if it runs with this proxy's configuration, else None."""
    try:
        process = processes.find_process(int(pid_file.read_text()))
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0") if process else ()
    except (OSError, ValueError):
        return None
    return process if os.fsencode(files.config) in arguments else None


async def find_worker(files: ProxyFiles) -> tuple[str, int]:
    """Return the digest of the worker's configuration, "" if it has none, and its pid. Raises ``ProxyGone``."""
    info = await runtime_api.ask(files.admin_socket, "show info")
    digest, pid = _DESCRIPTION.search(info), _PID.search(info)
    return digest[1] if digest else "", int(pid[1]) if pid else 0


async def start(options: ProxyOptions, files: ProxyFiles) -> None:
    """Start a proxy; it has read its configuration and listens when this returns.

    Raises ``EngineUnavailable`` with the proxy's message.
    """
    argv = command(_program(options), files)
    try:
        message = await asyncio.to_thread(_run, argv)
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"the preview proxy did not start within {START_TIMEOUT:.0f} s: {argv}") from None
    if message is not None:
        raise EngineUnavailable(explain(message, options))


def check_paths(files: ProxyFiles) -> None:
    """Raise ``EngineUnavailable`` if the proxy cannot use the paths of its files."""
    if len(os.fsencode(files.wake_socket)) > MAX_SOCKET_PATH:
        raise EngineUnavailable(
            f"the path of the preview's sockets is too long for Unix: {files.wake_socket} has more than "
            f"{MAX_SOCKET_PATH} bytes; choose a shorter data directory"
        )
    if forbidden := sorted(FORBIDDEN_CHARACTERS & set(str(files.directory))):
        raise EngineUnavailable(
            f"HAProxy cannot use a path with {' '.join(map(repr, forbidden))} in it: {files.directory}; choose "
            "another data directory"
        )


def _run(argv: Sequence[str]) -> str | None:
    """Run the command; return None once it is in the background, else its error output. It inherits no port, no file.

    The output goes to a file: the background process would keep a pipe open.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
            timeout=START_TIMEOUT,
            check=False,
        )
        output.seek(0)
        return output.read() if done.returncode else None


def _program(options: ProxyOptions) -> str:
    """Return the path of HAProxy. Raises ``EngineUnavailable`` if it is not installed."""
    found = shutil.which(options.program) or shutil.which(options.program, path=SEARCH_PATH)
    if found is None:
        raise EngineUnavailable(
            f"the previews need HAProxy, and there is no program {options.program}: install Debian's package haproxy, "
            "or run builderd setup"
        )
    return str(Path(found).absolute())


def command(haproxy: str, files: ProxyFiles) -> tuple[str, ...]:
    """Return the command: ``-W`` master and worker, ``-D`` background once it listens, ``-S`` the master's socket."""
    master_socket = f"{files.master_socket},mode,600"
    return (haproxy, "-W", "-D", "-S", master_socket, "-p", str(files.pid), "-f", str(files.config))


def explain(output: str, options: ProxyOptions) -> str:
    """Turn HAProxy's error output into a message for the operator."""
    alerts = _ALERT.findall(output)
    message = "; ".join(alerts) or output.strip() or "HAProxy printed nothing"
    ports = f"{options.port}" if options.tls_port is None else f"{options.port} or {options.tls_port}"
    if "Address already in use" in message:
        return (
            f"the preview cannot listen on {options.host} port {ports}, which another program has taken: stop "
            "that one, or choose another port with --preview-port"
        )
    if "Permission denied" in message and "bind" in message:
        return f"the preview may not listen on {options.host} port {ports}: run as root, or choose one above 1023"
    return f"the preview proxy does not start: {message}"


async def end(files: ProxyFiles) -> None:
    """End master and workers at once, and wait until they are gone. Idempotent."""
    master = find_process(files.pid, files)
    if master is None:
        return
    master.kill(signal.SIGTERM)
    if not await master.wait(END_TIMEOUT):
        # Its workers end with it: they exit when their socket to the master closes.
        master.kill()
        await master.wait(END_TIMEOUT)


async def adopt_or_start(options: ProxyOptions, files: ProxyFiles, wanted: Configuration) -> None:
    """Adopt the running proxy, reload it if its configuration changed, or start one.

    After a reload, the old worker has ``timeouts.drain`` seconds to finish its open requests. It would not learn of
    changed routes, so this returns once it has ended. Raises ``EngineUnavailable`` if the configuration is invalid; the
    old worker then continues.
    """
    if find_process(files.pid, files) is not None:
        try:
            digest, worker = await find_worker(files)
            if digest == wanted.digest:
                return
            _write_all(files, wanted)
            answer = await runtime_api.ask(files.master_socket, "reload")
            if not answer.startswith("Success=1"):
                await _take_ports_again(worker, files)
                raise EngineUnavailable(explain(answer, options))
            while _OLD_WORKER.search(await _processes(files)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        except ProxyGone:
            # No worker answers, so the master is about to exit.
            await end(files)
        else:
            return
    _write_all(files, wanted)
    await start(options, files)


async def _take_ports_again(worker: int, files: ProxyFiles) -> None:
    """Have the old worker serve again.

    A new worker that finds a port taken has the old one leave all its ports and sockets (SIGTTOU), and take them again
    (SIGTTIN) as it fails. An old worker that gets both signals at once, such as on a busy machine, stays without.
    """
    limit = asyncio.get_running_loop().time() + END_TIMEOUT
    while asyncio.get_running_loop().time() < limit:
        with contextlib.suppress(ProxyGone, TimeoutError):
            async with asyncio.timeout(0.5):
                await find_worker(files)
                return
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGTTIN)
        await asyncio.sleep(0.05)


async def _processes(files: ProxyFiles) -> str:
    """Return what the master says of its processes. Raises ``ProxyGone``."""
    try:
        return await runtime_api.ask(files.master_socket, "show proc")
    except ProxyGone:
        # Once the new worker is up, the master executes itself anew: it drops a connection that it has just accepted.
        return await runtime_api.ask(files.master_socket, "show proc")


def _write_all(files: ProxyFiles, wanted: Configuration) -> None:
    files.pages.mkdir(mode=0o700, exist_ok=True)
    for name, text in pages.documents().items():
        atomic_files.replace(files.pages / name, text.encode(), mode=0o644)
    atomic_files.replace(files.pause_script, pause.script().encode(), mode=0o644)
    atomic_files.replace(files.config, wanted.text.encode())


def run_check(program: str = "haproxy") -> PreflightCheck:
    """Check that HAProxy runs; changes nothing."""
    cost = "there are no previews: apt-get install haproxy"
    path = shutil.which(program, path=SEARCH_PATH)
    if path is None:
        return PreflightCheck("haproxy", False, "not installed", cost, True)
    done = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
    return PreflightCheck("haproxy", done.returncode == 0, done.stdout.split("\n")[0], cost, True)


#: Seconds to wait for the fence to write its pid file.
SPAWN_TIMEOUT = 10.0
#: It ends once the file is gone: a start of the proxy that was under way at the deadline ends, too. Workers end with
#: their master.
_SCRIPT = """\
echo $$ >"$1"; deadline=$2; config=$3; proxy=$4
while until=; read -r until <"$deadline"; do
  read -r now rest </proc/uptime
  if [ "${now%.*}" -ge "$until" ]; then
    pid=; read -r pid <"$proxy"
    if [ -n "$pid" ] && grep -qsF -e "$config" "/proc/$pid/cmdline"; then kill -KILL "$pid"; fi
  fi
  sleep 1
done
"""


async def set_deadline(files: ProxyFiles, until: float) -> None:
    """Let the proxy run until this time since the boot, in seconds, and no longer unless this is called again."""
    files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_files.replace(files.deadline, f"{math.ceil(until)}\n".encode())
    if find_process(files.fence_pid, files) is not None:
        return
    await asyncio.to_thread(_spawn, files)
    # Before its pid file is written, another call would start a second fence.
    limit = asyncio.get_running_loop().time() + SPAWN_TIMEOUT
    while find_process(files.fence_pid, files) is None and asyncio.get_running_loop().time() < limit:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def lift(files: ProxyFiles) -> None:
    """Let the proxy run without a deadline. Idempotent."""
    files.deadline.unlink(missing_ok=True)
    if (fence := find_process(files.fence_pid, files)) is not None:
        fence.kill()
        await fence.wait(END_TIMEOUT)
    files.fence_pid.unlink(missing_ok=True)


def is_past(files: ProxyFiles) -> bool:
    """Return True if the deadline has passed: no proxy may be started until it is moved or lifted."""
    try:
        until = int(files.deadline.read_text())
    except FileNotFoundError:
        return False
    return until <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def take_down(files: ProxyFiles) -> None:
    """End the proxy, and remove all its files, routes among them. Idempotent."""
    await end(files)
    # Last: the proxy of an earlier term has its fence for as long as it runs.
    await lift(files)
    shutil.rmtree(files.directory, ignore_errors=True)


def _spawn(files: ProxyFiles) -> None:
    paths = (files.fence_pid, files.deadline, files.config, files.pid)
    subprocess.run(
        ("setsid", "--fork", "sh", "-c", _SCRIPT, "fence", *map(str, paths)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        cwd="/",
        check=True,
    )
