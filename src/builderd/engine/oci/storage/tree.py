"""File tree that a running app can change: every step is safe against concurrent changes.

What lies at a path is reached by the kernel without following any link, and only then looked at; files are opened once
they are known to be plain ones. Everything continues from descriptors, never from a path a second time.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from builderd.code.model import BundleFile, path_error
from builderd.core.errors import InvalidState
from builderd.engine.oci.storage.subvolumes import ROOT_INODE, delete_subvolume_in, folder
from builderd.files.model import (
    IS_FILE,
    IS_FOLDER,
    IS_LINK,
    IS_OTHER,
    NOT_EMPTY,
    Condition,
    FileEntry,
    FileKind,
    FilePage,
    bad_path,
    no_file,
)
from builderd.linux.syscalls import open_beneath

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
#: A tree is deleted level by level, in at most so many rounds.
_ROUNDS = 100_000
_AT_ONCE = 1_000
#: Makes an archive of the folder that follows.
TAR = (
    *("tar", "--create", "--file=-", "--format=pax", "--sparse", "--hard-dereference", "--numeric-owner"),
    *("--owner=app:1000", "--group=app:1000", "--warning=none"),
)
#: Exit status of tar(1) for files that changed or went while they were read.
TAR_CHANGED = 1
#: The years 1 to 9999, in seconds since 1970.
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC).timestamp(), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Map the kernel's errors for unsuitable paths to the domain's errors."""
    try:
        yield
    except FileNotFoundError:
        raise no_file(path) from None
    except NotADirectoryError:
        raise bad_path(f"{path} {IS_FILE}, or lies below what is none") from None
    except BlockingIOError:
        raise InvalidState(f"{path} is leased by a program of the builder: try again when that has ended.") from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EXDEV):
            raise
        raise bad_path(f"{path} {IS_LINK}") from None


def list_folder(root: int, path: str, skip: int, count: int) -> FilePage:
    """Return entries of a folder in the order of their names."""
    with _named_errors(path or "/app"), closing(open_beneath(root, path or ".", _FOLDER)) as folder:
        total = 0

        def names() -> Iterator[str]:
            nonlocal total
            with os.scandir(folder) as entries:
                for entry in entries:
                    total += 1
                    yield entry.name

        chosen = heapq.nsmallest(skip + count, names(), key=os.fsencode)[skip:]
        return FilePage([entry for name in chosen if (entry := stat_entry(folder, name))], total)


def stat_entry(folder: int, name: str) -> FileEntry | None:
    """Return a folder's entry of this name; None when there is none (any more)."""
    try:
        status = os.lstat(name, dir_fd=folder)
        target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else None
    except OSError:
        return None
    return make_entry(name, status, target)


def make_entry(name: str, status: os.stat_result, target: str | None = None) -> FileEntry:
    return FileEntry(
        name=name,
        kind=_kind(status.st_mode),
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        modified_at=_time(status.st_mtime),
        # An app can set a file's mtime back, but never its ctime.
        tag=f"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}",
        target=target,
    )


def _time(seconds: float) -> datetime:
    """Convert a file time; times outside of the years 1 to 9999, which an app can set, are clamped."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


def _kind(mode: int) -> FileKind:
    if stat.S_ISREG(mode):
        return FileKind.FILE
    if stat.S_ISDIR(mode):
        return FileKind.FOLDER
    return FileKind.LINK if stat.S_ISLNK(mode) else FileKind.OTHER


def open_file(root: int, path: str) -> int:
    """Open a plain file for reading. Nothing else is opened: a pipe would block, a device would act."""
    with _named_errors(path), closing(open_beneath(root, path, os.O_PATH)) as found:
        kind = _kind(os.fstat(found).st_mode)
        if kind is not FileKind.FILE:
            raise bad_path(f"{path} {IS_FOLDER if kind is FileKind.FOLDER else IS_OTHER}")
        # Non-blocking: an app with a lease on the file would make us wait.
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def parent_of(root: int, path: str, owner: int | None = None) -> Iterator[tuple[int, str]]:
    """Open the folder of a path; return it and the last name. With an owner, missing folders are made."""
    above, _, name = path.rpartition("/")
    with _named_errors(path):
        try:
            folder = open_beneath(root, above or ".", _FOLDER)
        except FileNotFoundError:
            if owner is None:
                raise
            folder = _make_folders(root, above, owner)
        with closing(folder):
            yield folder, name


def _make_folders(root: int, path: str, owner: int) -> int:
    inside = os.dup(root)
    try:
        for name in path.split("/"):
            deeper = _make_folder(inside, name, owner)
            os.close(inside)
            inside = deeper
    except BaseException:
        os.close(inside)
        raise
    return inside


def _make_folder(parent: int, name: str, owner: int) -> int:
    with suppress(FileNotFoundError):
        return open_beneath(parent, name, _FOLDER)
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
    made = open_beneath(parent, name, _FOLDER)
    os.fchown(made, owner, owner)
    return made


def make_empty_folder(top: int, path: str, owner: int) -> bool:
    """Make a folder, or find it empty; return False for anything else, and where there is no room for it.

    The folder above it must be there, below ``top`` and not behind a link.
    """
    above, _, name = path.rpartition("/")
    try:
        with closing(open_beneath(top, above or ".", _FOLDER)) as parent:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
                os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)
            with closing(open_beneath(parent, name, _FOLDER)) as found, os.scandir(found) as entries:
                return next(entries, None) is None
    except OSError:
        return False


def mode_of(present: FileEntry | None, executable: bool | None) -> int:
    """Return the mode of a file that is written: that of the present one, unless it is asked for."""
    if executable is None and present and present.kind is FileKind.FILE:
        return present.mode & 0o777
    return 0o755 if executable else 0o644


def write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def check(root: int, path: str, condition: Condition) -> FileEntry | None:
    """Return the present entry. Raises ``PreconditionFailed``, ``ValidationFailed`` when no file can be put there."""
    above, _, name = path.rpartition("/")
    present = None
    with _named_errors(path), suppress(FileNotFoundError), closing(open_beneath(root, above or ".", _FOLDER)) as folder:
        present = stat_entry(folder, name)
    condition.check(present.tag if present else None)
    if present and present.kind is FileKind.FOLDER:
        raise bad_path(f"{path} {IS_FOLDER}")
    return present


def put(root: int, path: str, staged: int, staging: int, owner: int) -> FileEntry:
    """Link an unnamed file (O_TMPFILE) to its name, replacing the present file. ``staging``: a folder there."""
    token = secrets.token_hex(8)
    with parent_of(root, path, owner) as (folder, name):
        os.link(f"/proc/self/fd/{staged}", token, dst_dir_fd=staging, src_dir_fd=staging, follow_symlinks=True)
        try:
            os.rename(token, name, src_dir_fd=staging, dst_dir_fd=folder)
        except IsADirectoryError:
            raise bad_path(f"{path} {IS_FOLDER}") from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(token, dir_fd=staging)
    return make_entry(name, os.fstat(staged))


def delete(
    root: int, path: str, condition: Condition, staging: Callable[[], AbstractContextManager[int]], *, recursive: bool
) -> bool:
    """Move a full folder into the trash in one step, out of its app's reach; return True when one was moved.

    ``staging`` opens the folder for that. On a full disk there may be no room to make it, so nothing else needs it.
    """
    with parent_of(root, path) as (folder, name):
        present = stat_entry(folder, name)
        condition.check(present.tag if present else None)
        if present is None:
            raise no_file(path)
        if present.kind is not FileKind.FOLDER:
            with suppress(IsADirectoryError):  # the app has put a folder there meanwhile
                os.unlink(name, dir_fd=folder)
                return False
        if not recursive:
            try:
                os.rmdir(name, dir_fd=folder)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise bad_path(f"{path} {NOT_EMPTY}") from None
            return False
        with staging() as away:
            _move_away(folder, name, away)
        return True


def _move_away(folder: int, name: str, staging: int) -> None:
    if os.lstat(name, dir_fd=folder).st_ino == ROOT_INODE:
        delete_subvolume_in(folder, name)
    else:
        os.rename(name, secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=staging)


def clear(folder: int, is_over: Callable[[], bool] = lambda: False) -> bool:
    """Delete all content of a folder of any depth: subfolders are lifted up, level by level.

    Returns early once it ``is_over``: an app with its hands in there may feed it without end. Whether all is gone.
    """
    for _ in range(_ROUNDS):
        # btrfs lists only entries older than the last rewind of the descriptor.
        os.lseek(folder, 0, os.SEEK_SET)
        with os.scandir(folder) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _AT_ONCE)]
        if not names:
            return True
        for name, is_folder in names:
            if is_over():
                return False
            with suppress(FileNotFoundError):
                _lift(folder, name, is_over) if is_folder else os.unlink(name, dir_fd=folder)
    return False


def _lift(folder: int, name: str, is_over: Callable[[], bool]) -> None:
    """Move the folders in a folder up beside it, delete the files in it, and then it itself."""
    if os.lstat(name, dir_fd=folder).st_ino == ROOT_INODE:
        delete_subvolume_in(folder, name)
        return
    with closing(open_beneath(folder, name, _FOLDER)) as inside:
        # An app with a descriptor in there would refill it as fast as it is emptied.
        os.fchown(inside, 0, 0)
        os.fchmod(inside, 0o700)
        with os.scandir(inside) as entries:
            for entry in entries:
                if is_over():
                    return
                if entry.is_dir(follow_symlinks=False):
                    _move_away(inside, entry.name, folder)
                else:
                    os.unlink(entry.name, dir_fd=inside)
    # The next round finds what was put into it just before.
    with suppress(OSError):
        os.rmdir(name, dir_fd=folder)


#: A backup has the one folder ``app``. The user's home is ``.builderd-home`` in it or, if the app has that name itself,
#: the one of ``.builderd-home-1``, ``.builderd-home-2`` and so on that follows all of the app's own.
HOME_IN_BACKUP = ".builderd-home"
_NUMBERED = re.compile(re.escape(HOME_IN_BACKUP) + r"(?:-(\d{1,9}))?")


def put_home_in(disk: Path) -> None:
    """Move the home of a copy among its files. Idempotent."""
    app, home = disk / "app", disk / "home"
    if is_folder(home):
        home.rename(app / _home_name(_last_number(app) + 1))


def take_home_out(disk: Path) -> None:
    """Move the home of a restored disk, whose own is empty, out of its files. Idempotent."""
    app, home = disk / "app", disk / "home"
    found = app / _home_name(_last_number(app))
    if is_folder(found) and not (is_folder(home) and any(home.iterdir())):
        found.rename(home)  # replaces the empty one


def _home_name(number: int) -> str:
    return f"{HOME_IN_BACKUP}-{number}" if number > 0 else HOME_IN_BACKUP


def _last_number(app: Path) -> int:
    """Return the highest number of a home's name in the folder: 0 for the name without one, -1 without any."""
    found = (_NUMBERED.fullmatch(path.name) for path in app.iterdir())
    return max((int(match[1] or 0) for match in found if match), default=-1)


def is_folder(path: Path) -> bool:
    """Return True for a folder, and never for a link: a mount would follow it."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


UNFINISHED = ".builderd-unfinished"

_NO_LINK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_files(files: Sequence[BundleFile], removed: Sequence[str], target: Path, owner: int) -> None:
    """Remove the paths ``removed`` below ``target`` and write the files, ordered by their paths and owned by ``owner``.

    A folder that a removal leaves empty is removed too. What an app made of a path to be removed stays where that is
    a folder, or lies behind a link.

    A link or file where a folder must be is replaced. A folder with something in it where a file must be is moved
    aside to ``<name>.~1~``: the app may have written it. Other files stay as they are.
    """
    for path in (*removed, *(file.path for file in files)):
        if error := path_error(path):
            raise ValueError(f"{path!r} {error}")
    with folder(target) as root:
        for path in removed:
            _remove(root, path)
        for parent, siblings in itertools.groupby(files, key=lambda file: file.path.rpartition("/")[0]):
            with _enter(root, parent, owner) as inside:
                for file in siblings:
                    _write(inside, file, owner)


def copy_files(source: Path, paths: Mapping[str, os.stat_result], target: Path, owner: int) -> None:
    """Copy the files and links at these paths below ``source``, which nobody changes, into ``target``.

    What is there is replaced as ``write_files`` does. The bytes are copied, so that they count for the target.
    """
    ordered = sorted(paths.items(), key=lambda item: item[0].rpartition("/")[0])
    with folder(target) as root:
        for parent, siblings in itertools.groupby(ordered, key=lambda item: item[0].rpartition("/")[0]):
            with _enter(root, parent, owner) as inside:
                for path, status in siblings:
                    if stat.S_ISLNK(status.st_mode):
                        _link(inside, path, str((source / path).readlink()), owner)
                    else:
                        content = StoredContent(source / path, status.st_size)
                        _write(inside, BundleFile(path, content, bool(status.st_mode & 0o100)), owner)


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Content of a file that nobody changes. Implements ``code.model.Content``."""

    path: Path
    size: int

    def read(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def _link(parent: int, path: str, points_to: str, owner: int) -> None:
    name = path.rpartition("/")[2]
    _clear_path(parent, UNFINISHED)
    with suppress(FileNotFoundError):
        os.unlink(UNFINISHED, dir_fd=parent)
    os.symlink(points_to, UNFINISHED, dir_fd=parent)
    os.chown(UNFINISHED, owner, owner, dir_fd=parent, follow_symlinks=False)
    _clear_path(parent, name)
    os.rename(UNFINISHED, name, src_dir_fd=parent, dst_dir_fd=parent)


def _remove(root: int, path: str) -> None:
    """Remove the file or link of this name, and the folders above it that are then empty, deepest first."""
    *parents, name = path.split("/")
    with ExitStack() as opened, suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        folders = [root]
        for parent in parents:
            # Raises NotADirectoryError for a link, too.
            folders.append(os.open(parent, _NO_LINK, dir_fd=folders[-1]))
            opened.callback(os.close, folders[-1])
        os.unlink(name, dir_fd=folders[-1])
        for above, emptied in zip(reversed(folders[:-1]), reversed(parents), strict=True):
            try:
                os.rmdir(emptied, dir_fd=above)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                    raise
                break


@contextmanager
def _enter(root: int, path: str, owner: int) -> Iterator[int]:
    """Open the folder at a path below root, made if missing."""
    inside = os.dup(root)
    try:
        for name in filter(None, path.split("/")):
            deeper = _open_folder(inside, name, owner)
            os.close(inside)
            inside = deeper
        yield inside
    finally:
        os.close(inside)


def _open_folder(parent: int, name: str, owner: int) -> int:
    try:
        return os.open(name, _NO_LINK, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
    os.mkdir(name, 0o755, dir_fd=parent)
    made = os.open(name, _NO_LINK, dir_fd=parent)
    os.fchown(made, owner, owner)
    return made


def _write(parent: int, file: BundleFile, owner: int) -> None:
    name = file.path.rpartition("/")[2]
    _clear_path(parent, UNFINISHED)
    with suppress(FileNotFoundError):
        os.unlink(UNFINISHED, dir_fd=parent)
    descriptor = os.open(UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
    with os.fdopen(descriptor, "wb") as out:
        out.writelines(file.chunks())
        out.flush()
        os.fchown(descriptor, owner, owner)
        os.fchmod(descriptor, 0o755 if file.executable else 0o644)
    _clear_path(parent, name)
    os.rename(UNFINISHED, name, src_dir_fd=parent, dst_dir_fd=parent)


def _clear_path(parent: int, name: str) -> None:
    """Rename a file into place; a folder in its way is removed first, since a rename does not replace it."""
    try:
        os.rmdir(name, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        os.rename(name, _free_name(parent, name), src_dir_fd=parent, dst_dir_fd=parent)


def _free_name(parent: int, name: str) -> str:
    kept = name.encode()[:240].decode(errors="ignore")
    taken = set(os.listdir(parent))
    return next(free for n in itertools.count(1) if (free := f"{kept}.~{n}~") not in taken)
