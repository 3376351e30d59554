"""File copy: the files of a bundle are written into a folder that an app may have changed, others are removed.

The app may have left links to anywhere in it. No link is followed: every folder is opened from its parent as a
folder that is no link, and every file is written beside and renamed into place, over any present entry.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builderd.code.model import BundleFile, path_error
from builderd.engine.oci.storage.subvolumes import folder

UNFINISHED = ".builderd-unfinished"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
                        file = BundleFile(path, _Stored(source / path, status.st_size), bool(status.st_mode & 0o100))
                        _write(inside, file, owner)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Content of a file that nobody changes."""

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
            folders.append(os.open(parent, _FOLDER, dir_fd=folders[-1]))
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
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
    os.mkdir(name, 0o755, dir_fd=parent)
    made = os.open(name, _FOLDER, dir_fd=parent)
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
