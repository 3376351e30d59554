"""Place of the user's home among the files of a backup, whatever the app has named its own files.

A backup has the one folder ``app``. The home is ``.builderd-home`` in it. If the app has files of its own under one of
the two names that are used here, ``.builderd-home-and-app`` has both: the home as ``home``, and what the app has under
these names in ``app``. A restore therefore never has to guess whose a name is. Standard library only.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

HOME, BOTH = ".builderd-home", ".builderd-home-and-app"
#: Beside ``app`` and ``home`` on the disk, where no app has access: a copy whose home is in place already, and the
#: folder that becomes ``BOTH``, or was it.
_IN_PLACE, _BOTH = "home-in-backup", "home-and-app"


def put_in(disk: Path) -> None:
    """Move the home of a copy among its files. Idempotent, also after a crash in the middle."""
    app, home, both = disk / "app", disk / "home", disk / _BOTH
    if (disk / _IN_PLACE).exists():
        if both.exists():
            _fill(both, app, home)
        elif is_folder(home) and not os.path.lexists(app / HOME):
            home.rename(app / HOME)
        return
    if any(os.path.lexists(app / name) for name in (HOME, BOTH)):
        (both / "app").mkdir(mode=0o700, parents=True, exist_ok=True)
    (disk / _IN_PLACE).touch()
    put_in(disk)


def _fill(both: Path, app: Path, home: Path) -> None:
    if is_folder(home):
        home.rename(both / "home")
    for name in (HOME, BOTH):
        if os.path.lexists(app / name):
            (app / name).rename(both / "app" / name)
    both.rename(app / BOTH)


def take_out(disk: Path) -> None:
    """Move the home of a restored disk out of its files. Idempotent, also after a crash in the middle.

    A backup without a home is of a disk from before homes had a folder: an empty one is removed.
    """
    app, home, both = disk / "app", disk / "home", disk / _BOTH
    (disk / _IN_PLACE).unlink(missing_ok=True)
    if not both.exists() and _holds_both(app / BOTH):
        (app / BOTH).rename(both)
    if both.exists():
        _empty(both, app, home)
    elif is_folder(app / HOME) and not _has_files(home):
        (app / HOME).rename(home)  # replaces the empty one
    else:
        with suppress(OSError):
            home.rmdir()


def _empty(both: Path, app: Path, home: Path) -> None:
    for name in (HOME, BOTH):
        with suppress(FileNotFoundError):
            (both / "app" / name).rename(app / name)
    if is_folder(both / "home"):
        (both / "home").rename(home)
    with suppress(FileNotFoundError):
        (both / "app").rmdir()
    both.rmdir()


def _holds_both(found: Path) -> bool:
    """Return True for what ``put_in`` made; a backup from before it may have a folder of the app's of that name."""
    if not is_folder(found) or not is_folder(found / "app"):
        return False
    return _names(found) <= {"home", "app"} and _names(found / "app") <= {HOME, BOTH}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def is_folder(path: Path) -> bool:
    """Return True for a folder, and never for a link: a mount would follow it."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _has_files(home: Path) -> bool:
    return is_folder(home) and any(home.iterdir())
