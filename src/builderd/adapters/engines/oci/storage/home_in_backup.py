"""Place of the user's home among the files of a backup, whatever the app has named its own files.

A backup has the one folder ``app``. The home is ``.builderd-home`` in it or, if the app has that name itself, the one
of ``.builderd-home-1``, ``.builderd-home-2`` and so on that follows all of the app's own. Standard library only.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

HOME = ".builderd-home"
_NUMBERED = re.compile(re.escape(HOME) + r"(?:-(\d{1,9}))?")


def put_in(disk: Path) -> None:
    """Move the home of a copy among its files. Idempotent."""
    app, home = disk / "app", disk / "home"
    if is_folder(home):
        home.rename(app / _name(_last_number(app) + 1))


def take_out(disk: Path) -> None:
    """Move the home of a restored disk, whose own is empty, out of its files. Idempotent."""
    app, home = disk / "app", disk / "home"
    found = app / _name(_last_number(app))
    if is_folder(found) and not (is_folder(home) and any(home.iterdir())):
        found.rename(home)  # replaces the empty one


def _name(number: int) -> str:
    return f"{HOME}-{number}" if number > 0 else HOME


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
