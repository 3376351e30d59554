"""The data directory: one service's own, and only one process's at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import new_id

LOCK_FILE = "service.lock"
IDENTITY_FILE = "identity"
#: What a restore of the state puts together; it is there for as long as that goes on.
RESTORING = ".restoring"
#: Left by a restore of the state, until what the archive keeps was compared with it.
RESTORED = "restored"


def make(data_dir: Path) -> None:
    """Make it, readable for its owner alone. Idempotent."""
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir.chmod(0o700)


def refuse_half_restored(data_dir: Path) -> None:
    """Raises ``EngineUnavailable`` when a restore of the state was broken off: a new database would be in its way."""
    if (data_dir / RESTORING).exists():
        raise EngineUnavailable(
            f"A restore into {data_dir} was broken off: run it again, or remove {data_dir / RESTORING}."
        )


def identity(data_dir: Path) -> str:
    """Names the service of this directory towards others on the same database, over all its restarts.

    So a service that comes back after a crash goes on at once with what it had claimed. The directory must be held.
    """
    file = data_dir / IDENTITY_FILE
    if not file.exists():
        fresh = file.with_suffix(".new")
        fresh.write_text(new_id())
        fresh.rename(file)
    return file.read_text()


@contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Be the one service of this directory; the kernel lets go when the process ends, however it ends."""
    descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineUnavailable(f"A service is already running on {data_dir}: stop it first.") from None
        yield
    finally:
        os.close(descriptor)
