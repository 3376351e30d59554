"""The data directory: one service's own, and only one process's at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builderd.domain.errors import EngineUnavailable, InvalidState
from builderd.domain.ids import new_id
from builderd.linux import durable

LOCK_FILE = "service.lock"
IDENTITY_FILE = "identity"
#: What a restore of the state puts together; it is there for as long as that goes on.
RESTORING = ".restoring"
#: Left by a restore of the state, until what the archive keeps was compared with it.
RESTORED = "restored"
#: Which database the service works on, without the password.
DATABASE_NOTE = "builderd.database"
#: One of these tells a folder of builderd's from others, whichever database it is used with.
MARKS = frozenset(
    {LOCK_FILE, RESTORING, DATABASE_NOTE, "builderd.db", "builderd.toml", "vault.key", "ssh_host_key", "store.img"}
)
#: At the top of every new ext file system.
_LOST_AND_FOUND = "lost+found"


def make(data_dir: Path) -> None:
    """Make it, or take one that is empty or builderd's already; readable for its owner alone. Idempotent.

    Raises ``InvalidState`` for a folder that holds other things, such as ``/var/lib``, and leaves it as it is.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _refuse_foreign(data_dir)
        # Not all that lies in it has a mode of its own, such as the disks on btrfs.
        data_dir.chmod(0o700)


def is_ours(data_dir: Path) -> bool:
    """Whether a service, a restore or an operator has put something of builderd's there."""
    return any((data_dir / name).exists() for name in MARKS)


def _refuse_foreign(data_dir: Path) -> None:
    found = {path.name for path in data_dir.iterdir()} - {_LOST_AND_FOUND}
    if found and not found & MARKS:
        raise InvalidState(
            f"{data_dir} holds other things than builderd's, such as {min(found)}: name a folder that is empty or not "
            "there yet (--data-dir)."
        )


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
    # A power cut may have left it empty, and no two services may have the same.
    if not file.exists() or not file.read_text():
        durable.replace(file, new_id().encode())
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
