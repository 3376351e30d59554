"""What is written down of each sandbox under the data directory, so that the next service finds it, and how it ended.

``sandboxes/<id>/record.json`` is ours; the shim adds ``sandboxes/<id>/oom`` and ``exits/<id>`` (the exit code).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from builderd.linux.json_files import write_json
from builderd.linux.processes import Process

log = logging.getLogger(__name__)

#: So long a shim may take from making an exit file to its rename; it takes microseconds.
_SHIM_WRITES_SECONDS = 60.0
_NAME = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True)
class Record:
    """One sandbox. ``owner`` is its builder's id, empty for a build. ``boot`` is the boot of the machine it ran in.

    ``process`` is its first process and None until the runtime has made it; ``started_at`` is set once the program
    was told to run, ``stopping_at`` once we told it to end; ``frozen_at`` and ``thawed_at`` when we last did so.
    ``seen_at`` is set where it ended unseen: until then it is known to have run. Times are seconds since 1970.
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

    @property
    def is_build(self) -> bool:
        return not self.owner


@dataclass(frozen=True, slots=True)
class Exit:
    """``code`` of the first process, 128 + n for a signal; ``at`` in seconds since 1970."""

    code: int
    at: float


class Records:
    """``now`` is the service's time; ``at`` turns the time of a file into what it was then."""

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
        """Where the shim puts what else there is to keep."""
        return self._root / name

    def all(self) -> Iterator[Record]:
        """Those that are whole; what a power cut left of others is removed."""
        for folder in sorted(self._root.iterdir()) if self._root.exists() else ():
            if record := self._load(folder):
                yield record

    def sweep(self) -> None:
        """Remove what a service or a shim that was killed in the middle of writing left: no record knows of it.

        Only for a service that starts: nobody else writes records then. A shim may write an exit file at any time, in
        a file of another name that it renames, so only old ones go.
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
            with contextlib.suppress(FileNotFoundError):  # a shim renamed it meanwhile
                if file.name not in known and file.stat().st_mtime < latest:
                    log.info("removing an exit file that no sandbox has file=%s", file.name)
                    file.unlink()

    def save(self, record: Record) -> None:
        folder = self.folder(record.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(folder / "record.json", asdict(record))

    def remove(self, name: str) -> None:
        """Idempotent."""
        (self.exits / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def exit(self, name: str) -> Exit | None:
        """What the shim wrote at the end, or None."""
        file = self.exits / name
        try:
            # Asked first, since it costs least where there is none, and most have none.
            ended_at = file.stat().st_mtime
            return Exit(int(file.read_text()), self._at(ended_at))
        except (FileNotFoundError, ValueError):
            return None

    def note_oom(self, name: str) -> None:
        """The same, as seen by us."""
        if self.folder(name).exists():
            (self.folder(name) / "oom").touch()

    def saw_oom(self, name: str) -> bool:
        """Whether the shim saw the kernel kill a process of it for memory."""
        return (self.folder(name) / "oom").exists()

    def _load(self, folder: Path) -> Record | None:
        try:
            fields = json.loads((folder / "record.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            # A power cut came before it was on the disk, so nothing of that sandbox runs any more.
            self.remove(folder.name)
            return None
        for name in ("process", "shim"):
            fields[name] = Process(**fields[name]) if fields[name] else None
        return Record(**fields)


def is_name(text: str) -> bool:
    """Whether it can name a sandbox: nothing else is ever made part of a path."""
    return _NAME.fullmatch(text) is not None


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
