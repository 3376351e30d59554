"""Commands that the launcher starts in a sandbox itself, without a runtime's process.

For crun's sandboxes, and for commands without a terminal. All others begin by the runtime's own ``exec``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from builderd.adapters.engines.oci.runtime.bundle import OOM_SCORE
from builderd.adapters.engines.oci.runtime.execute import HANG_UP_SECONDS, Execution
from builderd.adapters.engines.oci.runtime.join import READY
from builderd.adapters.engines.oci.runtime.launching import Ended
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.adapters.engines.oci.runtime.streams import Outlet, open_pipes
from builderd.domain.errors import InvalidState
from builderd.domain.processes import ProcessSpec
from builderd.linux.processes import open_files

_SHELL = "/bin/sh"
#: Found by the shell, as after the gate of a runtime's ``exec``: the joining process executes no file of an app's.
_SEARCH = ("-c", 'exec "$@"')


def can_join(runs: Runs, record: Record, spec: ProcessSpec) -> bool:
    """Return True if the launcher can start this command itself: crun has kept the filter of its system calls."""
    if spec.window is not None or record.runtime != "crun" or runs.launcher.joiner is None:
        return False
    return os.path.exists(_filter_of(runs, record))  # noqa: PTH110


def _filter_of(runs: Runs, record: Record) -> str:
    return f"{runs.commands.runtime(record).root}/{record.id}/seccomp.bpf"


def encode(
    numbers: Sequence[int | str], folder: str, groups: Sequence[str], argv: Sequence[str], env: Sequence[str]
) -> bytes:
    """Return a document as ``join.c`` reads it. Raises ``ValueError`` for what no program can be given."""
    texts = [*map(str, numbers), folder]
    for listed in (groups, argv, env):
        texts += (str(len(listed)), *listed)
    document = b"\0".join(_encode(text) for text in texts)
    if document.count(b"\0") != len(texts) - 1:
        raise ValueError("embedded null byte")
    return document + b"\0"


def _encode(text: str) -> bytes:
    """Return its bytes, whatever the locale of the service."""
    return text.encode("utf-8", "surrogateescape")


def _in_memory(document: bytes) -> int:
    """Return a descriptor of memory that holds the whole document, at its beginning. Raises ``OSError``."""
    memory = os.memfd_create("command", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(document)
        os.lseek(memory, 0, os.SEEK_SET)
    except OSError:
        os.close(memory)
        raise
    return memory


class JoinedExecution(Execution):
    """Command whose process is the launcher's child, in all groups and namespaces of its sandbox from the start."""

    _report: Outlet | None = None

    def __init__(self, runs: Runs, record: Record, spec: ProcessSpec) -> None:
        super().__init__(runs, record, spec)
        # On version 1 a process with one thread moves itself without any wait.
        self._moves = runs.cgroups.version == 2

    async def _begin(self) -> None:
        try:
            # By this file the next service finds a command that this one left.
            os.close(os.open(self._document, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            user, env = self._identity()
            groups = self._runs.cgroups.open_inner(self._record.id, self._name)
        except FileNotFoundError:
            raise InvalidState("The sandbox does not run.") from None
        self._in_group = True
        self._join(self._make_document(user, env, groups))
        async with self._in_time():
            report = await self._read_report()
            if report != READY:
                await asyncio.wait({self._ended})  # which says whether anything on the host was killed
            self._check(report)
        self._runs.cgroups.close_inner(self._name)

    async def end(self, timeout: float = HANG_UP_SECONDS) -> None:
        self._runs.cgroups.close_inner(self._name)
        await super().end(timeout)

    def _make_document(self, user: int, env: dict[str, str], groups: list[str]) -> bytes:
        process, folder, argv = self._record.process, self._spec.folder, self._spec.argv
        assert process, "it runs"
        try:
            return encode(
                (process.pid, process.started, OOM_SCORE, open_files(), user, _filter_of(self._runs, self._record)),
                folder,
                groups,
                argv if argv[0] == _SHELL else (_SHELL, *_SEARCH, folder, *argv),
                [f"{name}={value}" for name, value in {"PWD": folder, **env}.items()],
            )
        except ValueError as error:
            raise InvalidState(f"The command could not be started: {error}") from error

    def _join(self, document: bytes) -> None:
        """Ask the launcher. The document holds secrets: it goes through memory, and the launcher itself never reads it.

        Whatever fails here leaves no descriptor open: from the call on, the launcher's side closes its own.
        """
        memory = _in_memory(document)
        ends = open_pipes(joined=self._spec.joined)
        read, write = os.pipe2(os.O_CLOEXEC)
        self._ended = asyncio.ensure_future(self._run_joined([*(ends.given[at] for at in range(3)), write, memory]))
        self._open(ends)
        self._report = Outlet(read, self._ended)

    async def _run_joined(self, descriptors: list[int]) -> Ended:
        return Ended(await self._runs.launcher.join(self._name, descriptors))

    async def _read_report(self) -> bytes:
        """Return the report once the program is executed, or nothing of it is left."""
        report = b""
        while self._report and (piece := await self._report.read()):
            report += piece
        return report

    def _check(self, report: bytes) -> None:
        if report == READY:
            return
        kind, _, text = report.removeprefix(READY).decode(errors="replace").partition(" ")
        match kind:
            case "folder":
                raise self._no_folder
            case "failed":
                number, _, action = text.partition(" ")
                reason = f"{action}: {os.strerror(int(number))}" if int(number) else action
                raise InvalidState(f"The command could not be started: {reason}")
        self._ended.result()  # the launcher or the joining process was killed, or the launcher could not fork
        raise InvalidState("The sandbox has ended.")

    @property
    def _is_cut_off(self) -> bool:
        """Return True when the launcher was killed while the program continues: its status is the program's own."""
        return self._abandoned or (self._ended.done() and self._ended.exception() is not None)

    async def _kill_group(self) -> None:
        # A process that has not executed its program yet ends at its report.
        if self._report:
            self._report.close()
        await super()._kill_group()

    def _close_streams(self) -> None:
        super()._close_streams()
        if self._report:
            self._report.close()
