"""Commands of the OCI runtimes, each run to its end under the fork server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from builderd.adapters.engines.oci.runtime import exec_fifo
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.launching import Launcher, Program
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.root import HIDE_NETWORK_PARAMETERS
from builderd.domain.errors import EngineUnavailable

#: Environment of shims and runtimes.
SHIM_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "_OCI_SYNCPIPE": "3"}


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


def was_started(runtime: Runtime, record: Record) -> bool:
    """Return False when crun's state says that the sandbox, which has ended, was created and never started."""
    return runtime.name != "crun" or exec_fifo.was_released(runtime.root / record.id)


def runtime_mounts(runtime: Runtime) -> list[dict[str, Any]]:
    """Return the mounts that every command of this runtime needs."""
    return [HIDE_NETWORK_PARAMETERS] if runtime.is_gvisor else []
