"""The data directory: of one service, locked by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builderd.core.errors import EngineUnavailable, InvalidState
from builderd.core.ids import new_id
from builderd.linux import atomic_files
from builderd.previews.haproxy.options import ProxyFiles

LOCK_FILE = "service.lock"
IDENTITY_FILE = "identity"
#: The staging folder of a restore of the service's state; it exists while the restore runs.
RESTORING = ".restoring"
#: Written by a restore of the state; removed once the backup repository was listed again.
RESTORED = "restored"
#: A file with the location of the service's database, without the password.
DATABASE_NOTE = "builderd.database"
#: Files by which a data directory of builderd is recognised, whichever database it is used with.
MARKS = frozenset(
    {LOCK_FILE, RESTORING, DATABASE_NOTE, "builderd.db", "builderd.toml", "vault.key", "ssh_host_key", "store.img"}
)
#: Exists at the root of every new ext file system.
_LOST_AND_FOUND = "lost+found"


def make(data_dir: Path) -> None:
    """Create the data directory with mode 0700, or accept one that is empty or builderd's. Idempotent.

    Raises ``InvalidState`` for a folder with other files, such as ``/var/lib``, and changes nothing there.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = {path.name for path in data_dir.iterdir()} - {_LOST_AND_FOUND}
        if found and not found & MARKS:
            raise InvalidState(
                f"{data_dir} has files that are not builderd's, such as {min(found)}: name a folder that is empty or "
                "does not exist yet (--data-dir)."
            ) from None
        # The disks on btrfs, among others, rely on this mode to keep other users out.
        data_dir.chmod(0o700)


def is_ours(data_dir: Path) -> bool:
    """Return True when the folder has a file of builderd's."""
    return any((data_dir / name).exists() for name in MARKS)


def proxy_files(data_dir: Path) -> ProxyFiles:
    """Return the files of the previews' proxy."""
    return ProxyFiles((data_dir / "previews").absolute())


def refuse_half_restored(data_dir: Path) -> None:
    """Raise ``EngineUnavailable`` after an interrupted restore: a new database would block running it again."""
    if (data_dir / RESTORING).exists():
        raise EngineUnavailable(
            f"A restore into {data_dir} was interrupted: run it again, or remove {data_dir / RESTORING}."
        )


def identity(data_dir: Path) -> str:
    """Return the random id of this directory's service; it stays the same over restarts.

    A service that restarts after a crash so recognises its own claims and resumes them at once. The directory must be
    locked.
    """
    file = data_dir / IDENTITY_FILE
    # A power cut may have left the file empty, and no two services may share an id.
    if not file.exists() or not file.read_text():
        atomic_files.replace(file, new_id().encode(), durable=True)
    return file.read_text()


@contextmanager
def lock(data_dir: Path, url: str = "") -> Iterator[None]:
    """Lock the directory for this process; the kernel releases the lock when the process ends.

    ``url`` is where the process listens, for ``listening``.
    Raises ``EngineUnavailable`` when another process has it.
    """
    descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineUnavailable(f"A service is already running on {data_dir}: stop it first.") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, url.encode())
        yield
    finally:
        os.close(descriptor)


def listening(data_dir: Path) -> str:
    """Return where the service of this directory listens, "" while none runs."""
    try:
        with (data_dir / LOCK_FILE).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        return ""
    return ""
