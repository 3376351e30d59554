"""Local state of a folder, in ``.builderd``: calls without an answer yet, and the code that was sent last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from builderd.client import folders

STATE = Path(folders.STATE) / "state.json"
#: A job that ``builderd run`` has begun. It is apart from the state of deployments, which may go on beside it.
JOB = Path(folders.STATE) / "job.json"
#: Paths and digests of the code that was sent last, so that the next deployment sends what has changed.
SENT = Path(folders.STATE) / "sent.json"


@dataclass(slots=True)
class Pending:
    """A deployment whose answer has not arrived: sent again with its key, it is not made twice.

    ``upload_url`` is set once an upload has begun, ``upload_id`` once it is complete. ``name`` is that of a job.
    ``stored`` is the bundle that the call sends the changes to. ``sent``: the service may have begun.
    """

    key: str
    fingerprint: str
    builder: str | None = None
    name: str | None = None
    upload_id: str | None = None
    upload_url: str | None = None
    stored: str | None = None
    sent: bool = True


@dataclass(frozen=True, slots=True)
class KnownCode:
    """Code that a builder of the service has, as it was sent from the folder last."""

    service: str
    builder: str
    bundle: str
    files: Mapping[str, folders.Digest]


class State:
    """State of a folder that is kept on this machine alone."""

    def __init__(self, root: Path, file: Path = STATE) -> None:
        self._file = root / file
        self._sent = root / SENT

    def claim(self) -> IO[bytes] | None:
        """Return a lock that this process has until it closes it or ends; None while another one has it."""
        try:
            import fcntl  # noqa: PLC0415 (not on Windows)
        except ImportError:
            return None
        self._make_folder()
        lock = self._file.with_suffix(".lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock

    def _make_folder(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        (self._file.parent / ".gitignore").write_text("*\n")

    def pending(self, fingerprint: str) -> Pending | None:
        """Return the unanswered deployment of the same code and settings to the same service."""
        try:
            pending = Pending(**json.loads(self._file.read_text())["pending"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pending if pending.fingerprint == fingerprint else None

    def keep(self, pending: Pending) -> None:
        """Write a deployment down before it is sent."""
        self._make_folder()
        # For the owner alone: the URL of an upload lets anyone who has it send it.
        replace_file(self._file, json.dumps({"pending": asdict(pending)}))

    def forget(self) -> None:
        """Drop the deployment: its answer has arrived."""
        self._file.unlink(missing_ok=True)

    def known_code(self, service: str, builder: str) -> KnownCode | None:
        """Return the code that was sent to this builder last; None if it was another one, or is not known."""
        try:
            read = json.loads(self._sent.read_text())
            files = {path: (bool(bit), str(sha256)) for path, (bit, sha256) in read["files"].items()}
            known = KnownCode(str(read["service"]), str(read["builder"]), str(read["bundle"]), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return known if (known.service, known.builder) == (service, builder) else None

    def keep_known(self, known: KnownCode) -> None:
        """Write down what the service has now."""
        self._make_folder()
        replace_file(self._sent, json.dumps(asdict(known)))


def fingerprint(*parts: Any) -> str:
    """Return the sha256 of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def replace_file(file: Path, text: str, mode: int = 0o600) -> None:
    """Write a file whole or not at all; until it is complete, only its owner may read it."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    new.chmod(mode)
    new.replace(file)
