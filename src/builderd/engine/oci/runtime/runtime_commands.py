"""The OCI runtimes and the shim: their command lines, and commands run to their end under the fork server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.runtime.launching import Launcher, Program
from builderd.engine.oci.runtime.records import Record

#: Environment of shims and runtimes.
SHIM_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "_OCI_SYNCPIPE": "3"}
#: Hidden from gVisor, which otherwise takes any network namespace for the host's own and refuses it.
HIDE_NETWORK_PARAMETERS = {"kind": "tmpfs", "target": "/proc/sys/net"}


class RuntimeCommands:
    """Runtimes of this machine by name, and their commands."""

    def __init__(self, runtimes: Mapping[str, Runtime], launcher: Launcher) -> None:
        self._runtimes = runtimes
        self._launcher = launcher

    def runtime(self, record: Record) -> Runtime:
        """Return its runtime. Raises ``EngineUnavailable`` when the program was removed from the host."""
        if runtime := self._runtimes.get(record.runtime):
            return runtime
        raise EngineUnavailable(f"{record.runtime}, under which this sandbox runs, is not installed any more.")

    async def ask(self, runtime: Runtime, argv: Sequence[str], stream: int = 2) -> tuple[int, str]:
        """Run a runtime's command; return its exit status and one of its streams, at most 64 KiB."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            program = Program(argv, SHIM_ENV, mounts=runtime_mounts(runtime))
            ended = await self._launcher.run(program, {stream: write})
            with contextlib.suppress(BlockingIOError):
                return ended.status, os.read(read, 65536).decode(errors="replace")
            return ended.status, ended.error
        finally:
            os.close(read)


def runtime_mounts(runtime: Runtime) -> list[dict[str, Any]]:
    """Return the mounts that every command of this runtime needs."""
    return [HIDE_NETWORK_PARAMETERS] if runtime.is_gvisor else []


CONMON = "/usr/bin/conmon"


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime: ``name`` is crun, runc or runsc, ``root`` where it keeps its state."""

    name: str
    path: str
    root: Path

    @property
    def is_gvisor(self) -> bool:
        """True when gVisor answers system calls: its processes are not processes of the host."""
        return self.name == "runsc"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options before every command. gVisor's own overlay would lose what the app writes."""
        gvisor = ("--overlay2=none", "--network=sandbox", "--host-uds=none") if self.is_gvisor else ()
        return (f"--root={self.root}", *gvisor)

    def command(self, *words: str) -> list[str]:
        return [self.path, *self.options, *words]


def execute(runtime: Runtime, name: str, process: Path, pid_file: Path, console: Path | None = None) -> list[str]:
    """Run the process of an OCI ``process`` document beside the sandbox's own.

    ``console`` is the socket over which the runtime hands over the terminal that it makes.
    """
    terminal = () if console is None else ("--console-socket", str(console))
    return runtime.command("exec", *terminal, "--process", str(process), "--pid-file", str(pid_file), name)


def shim(runtime: Runtime, name: str, bundle: Path, record: Path, exits: Path) -> list[str]:
    """conmon, which has the runtime create the sandbox, keeps its log, and writes down how it ended.

    ``bundle`` has its run-time files, ``record`` gets its ``oom`` file, ``exits`` a file with the exit code. It needs
    ``--full-attach``, or it fails on the path of a socket that is unused here.
    """
    return [
        CONMON,
        *("--api-version", "1", "--full-attach", "--no-sync-log"),
        *("--cid", name, "--cuuid", name, "--name", name),
        *("--runtime", runtime.path),
        *(word for option in runtime.options for word in ("--runtime-arg", option)),
        *("--bundle", str(bundle), "--socket-dir-path", str(bundle)),
        *("--container-pidfile", str(bundle / "pid"), "--conmon-pidfile", str(bundle / "conmon.pid")),
        *("--exit-dir", str(exits), "--persist-dir", str(record)),
    ]
