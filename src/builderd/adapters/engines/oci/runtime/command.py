"""The command lines of the shim and of the runtimes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def start(runtime: Runtime, name: str) -> list[str]:
    return [runtime.path, *runtime.options, "start", name]


def state(runtime: Runtime, name: str) -> list[str]:
    return [runtime.path, *runtime.options, "state", name]


def kill(runtime: Runtime, name: str, signal: str) -> list[str]:
    return [runtime.path, *runtime.options, "kill", name, signal]


def delete(runtime: Runtime, name: str) -> list[str]:
    return [runtime.path, *runtime.options, "delete", "--force", name]


def execute(runtime: Runtime, name: str, process: Path, pid_file: Path, console: Path | None = None) -> list[str]:
    """Run the process of an OCI ``process`` document beside the sandbox's own.

    ``console`` is the socket over which the runtime hands over the terminal that it makes.
    """
    terminal = () if console is None else ("--console-socket", str(console))
    return [
        *(runtime.path, *runtime.options, "exec", *terminal),
        *("--process", str(process), "--pid-file", str(pid_file), name),
    ]


def shim(runtime: Runtime, name: str, bundle: Path, record: Path, exits: Path) -> list[str]:
    """conmon, which has the runtime create the sandbox, keeps its log, and writes down how it ended.

    ``bundle`` holds its run-time files, ``record`` gets its ``oom`` file, ``exits`` a file with the exit code. It needs
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
