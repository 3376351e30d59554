"""Records of sandboxes under the data directory, for the next process of the service: what runs, and how it ended.

``sandboxes/<id>/record.json`` is ours; the shim adds ``sandboxes/<id>/oom`` and ``exits/<id>`` (the exit code). The
heartbeat is written each second while something runs, so that after a crash of the machine the end is known.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builderd.core.ids import BuilderId, SandboxId
from builderd.engine.oci.runtime.cgroups import Cgroups
from builderd.linux.atomic_files import from_stored, to_stored, write_json
from builderd.linux.processes import Process
from builderd.linux.threads import RepeatedCall
from builderd.sandboxes.model import EndCause, SandboxEnd, SandboxReport, SandboxState

log = logging.getLogger(__name__)

#: Age at which an unfinished exit file counts as abandoned; a shim takes microseconds to rename it.
_SHIM_WRITES_SECONDS = 60.0
_NAME = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True)
class Record:
    """Record of one sandbox. ``owner`` is its builder's id, empty for a build. ``boot``: boot id of the machine.

    ``process`` is its first process and None until the runtime has made it; ``started_at`` is set once the program
    was started, ``stopping_at`` once the engine stops it; ``frozen_at`` and ``thawed_at`` at the last freeze and thaw.
    ``seen_at`` is set where it ended unseen: until then it is known to have run. Times are seconds since 1970.
    ``tenant`` is whose NAT ports it takes; empty for a build.
    """

    id: str
    owner: str
    disk: str
    runtime: str
    slot: int
    ip: str
    port: int
    boot: str
    process: Process | None = None
    shim: Process | None = None
    started_at: float | None = None
    stopping_at: float | None = None
    frozen_at: float | None = None
    thawed_at: float | None = None
    seen_at: float | None = None
    tenant: str = ""
    #: ``worker.1`` of a further process, beside which others run on its disk; it has a scratch of its own.
    label: str = ""
    #: What a later version stored: kept, for the way back to it.
    unknown: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_build(self) -> bool:
        """True for a build or a tool: the next service removes it."""
        return not self.owner

    @property
    def counts_as_frozen(self) -> bool:
        """Return True when it was frozen and not thawed since."""
        return self.frozen_at is not None and (self.thawed_at or 0) < self.frozen_at


@dataclass(frozen=True, slots=True)
class Exit:
    """Exit of a sandbox. ``code`` of the first process, 128 + n for a signal; ``at`` in seconds since 1970."""

    code: int
    at: float


class Records:
    """Records in the data directory. ``now`` returns the service's time; ``at`` converts a file's time to it."""

    def __init__(
        self, data_dir: Path, now: Callable[[], float] = time.time, at: Callable[[float], float] = float
    ) -> None:
        self.now = now
        self._at = at
        self.exits = data_dir / "exits"
        self._root = data_dir / "sandboxes"

    def open(self) -> None:
        for folder in (self._root, self.exits):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, name: str) -> Path:
        """Return the folder in which a sandbox's shim keeps its files."""
        return self._root / name

    def all(self) -> list[Record]:
        """Return all complete records; remove those that a power cut left incomplete."""
        folders = sorted(self._root.iterdir()) if self._root.exists() else []
        return [record for record in map(self._load, folders) if record]

    def sweep(self) -> None:
        """Remove files without a record, left by a service or shim that was killed while writing.

        Only while the service starts, when nothing else writes records. A shim may write an exit file at any time, as
        a file of another name that it renames, so only old ones are removed.
        """
        for folder in self._root.iterdir():
            if not (folder / "record.json").exists():
                log.info("removing what is left of a sandbox without a record sandbox=%s", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
            for unfinished in folder.glob(".record.json.*"):
                unfinished.unlink(missing_ok=True)
        known = {folder.name for folder in self._root.iterdir()}
        latest = time.time() - _SHIM_WRITES_SECONDS
        for file in self.exits.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its shim renamed it meanwhile
                if file.name not in known and file.stat().st_mtime < latest:
                    log.info("removing an exit file that no sandbox has file=%s", file.name)
                    file.unlink()

    def save(self, record: Record) -> None:
        folder = self.folder(record.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(folder / "record.json", to_stored(record))

    def remove(self, name: str) -> None:
        """Remove a record with all its files, also the exit file that a killed shim had begun. Idempotent."""
        for file in (self.exits / name, *self.exits.glob(f"{name}.*")):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def exit(self, name: str) -> Exit | None:
        """Return the exit that the shim wrote, or None."""
        file = self.exits / name
        try:
            return Exit(int(file.read_text()), self._at(file.stat().st_mtime))
        except (FileNotFoundError, ValueError):
            return None

    def note_oom(self, name: str, *, by_host: bool = False) -> None:
        """Record that the kernel killed one of its processes for memory, as seen by the service.

        ``by_host``: for the memory of the host, of which the shim knows nothing.
        """
        if self.folder(name).exists():
            (self.folder(name) / ("host-oom" if by_host else "oom")).touch()

    def saw_oom(self, name: str) -> bool:
        """Return True when the shim or the service saw the kernel kill one of its processes for memory."""
        return (self._root / name / "oom").exists()

    def saw_host_oom(self, name: str) -> bool:
        """Return True when the service saw the kernel kill one of its processes for the memory of the host."""
        return (self._root / name / "host-oom").exists()

    def _load(self, folder: Path) -> Record | None:
        try:
            fields = json.loads((folder / "record.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            # A power cut came before it was on the disk, so the sandbox does not run any more.
            self.remove(folder.name)
            return None
        for name in ("process", "shim"):
            fields[name] = from_stored(Process, fields[name]) if fields[name] else None
        return from_stored(Record, fields)


def is_name(text: str) -> bool:
    """Return True for a valid sandbox name; only those become part of a path."""
    return _NAME.fullmatch(text) is not None


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


#: Seconds between two heartbeats.
INTERVAL = 1.0
#: The file never changes its length, so that writing it again touches nothing else of the file system.
_LENGTH = 80


class Heartbeat:
    def __init__(self, file: Path, boot: str, now: Callable[[], float]) -> None:
        self._file = file
        self._boot = boot
        self._now = now
        self._calls: RepeatedCall[bool] | None = None

    def last(self) -> tuple[str, float] | None:
        """Return the boot id and the time of the last heartbeat on disk, None when there is none."""
        try:
            boot, at = self._file.read_text().split()
            return boot, float(at)
        except (FileNotFoundError, ValueError):
            return None

    def beat(self) -> None:
        """Write a heartbeat through to the disk: a power cut loses one second at most."""
        line = f"{self._boot} {self._now():.3f}".ljust(_LENGTH - 1) + "\n"
        with os.fdopen(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(line)
            file.flush()
            os.fdatasync(file)

    def start(self, is_busy: Callable[[], bool]) -> None:
        """Write a heartbeat each second while ``is_busy`` returns True. Needs a running event loop."""
        self._calls = RepeatedCall("heartbeat", INTERVAL, is_busy, lambda busy: self.beat() if busy else None)
        self._calls.start()

    def stop(self) -> None:
        if self._calls is not None:
            self._calls.close()


#: File times may be behind by one tick of the kernel, in seconds.
_CLOCK_GRAIN = 0.02


#: Signals of a machine shutdown: TERM, then KILL.
SHUTDOWN_CODES = (143, 137)
#: The heartbeat of a service ends with it, in seconds before all else does.
_BEAT = 2.0


def missing_report(sandbox: SandboxId) -> SandboxReport:
    return SandboxReport(id=sandbox, builder_id=None, state=SandboxState.ABSENT)


def make_report(
    record: Record, *, running: bool, exit_: Exit | None, oom: EndCause | None, boot: str, frozen: bool = False
) -> SandboxReport:
    """Return the report. ``exit_`` is the shim's exit file, ``oom``: why the kernel killed a process for memory."""
    sandbox, builder = SandboxId(record.id), BuilderId(record.owner)
    if record.started_at is None:
        return SandboxReport(sandbox, builder, SandboxState.PARTIAL)
    started, for_limit = moment(record.started_at), oom is EndCause.OUT_OF_MEMORY
    frozen_at, thawed_at = _moment(record.frozen_at), _moment(record.thawed_at)
    if running:
        state = SandboxState.FROZEN if frozen else SandboxState.RUNNING
        return SandboxReport(sandbox, builder, state, record.ip, started, None, frozen_at, thawed_at, for_limit)
    end = make_end(record, exit_, oom, boot)
    return SandboxReport(sandbox, builder, SandboxState.EXITED, None, started, end, frozen_at, thawed_at, for_limit)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def make_end(record: Record, exit_: Exit | None, oom: EndCause | None, boot: str) -> SandboxEnd:
    """Return the exit reason. A code of 137 may be any SIGKILL; no exit file means that the shim was killed."""
    if exit_ is None:
        cause = EndCause.HOST_RESTARTED if record.boot != boot else EndCause.MONITOR_LOST
        last_seen = None if record.seen_at is None else moment(max(record.seen_at, record.started_at or 0))
        return SandboxEnd(EndCause.STOPPED if record.stopping_at else cause, None, last_seen)
    at = moment(max(exit_.at, record.started_at or 0))
    if record.stopping_at is not None and exit_.at >= record.stopping_at - _CLOCK_GRAIN:
        return SandboxEnd(EndCause.STOPPED, exit_.code, at)
    if record.boot != boot and exit_.code in SHUTDOWN_CODES and exit_.at >= (record.seen_at or exit_.at) - _BEAT:
        return SandboxEnd(EndCause.HOST_RESTARTED, None, at)
    # An app may survive the death of one of its processes and exit normally later.
    if oom and exit_.code:
        return SandboxEnd(oom, exit_.code, at)
    return SandboxEnd(EndCause.EXITED, exit_.code, at)


def oom_cause(records: Records, cgroups: Cgroups, name: str) -> EndCause | None:
    """Return why the kernel killed a process of the sandbox for memory, None when it killed none.

    The shim sees kills of both kinds and notes them alike, so the control group decides.
    """
    # Asked first: usually there are none, and a command asks it before it begins.
    kills = cgroups.oom_kills(name)
    if records.saw_host_oom(name) or (kills and cgroups.host_oom_kills(name)):
        return EndCause.HOST_OUT_OF_MEMORY
    if kills or records.saw_oom(name):
        return EndCause.OUT_OF_MEMORY
    return None
