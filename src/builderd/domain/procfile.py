"""Parser of ``Procfile``, which names the commands of an app, one a line: ``web: gunicorn app:app``.

Format: https://devcenter.heroku.com/articles/procfile
"""

from __future__ import annotations

import re

from builderd.domain.bundles import Bundle

FILE = "Procfile"
#: Only this many bytes of it are read.
MAX_BYTES = 1_000_000
LINE = re.compile(r"(?P<process>[A-Za-z0-9_-]+)\s*:\s*(?P<command>\S.*?)\s*")


def web_command(bundle: Bundle) -> str | None:
    """Return the command of the process ``web``, or None without one."""
    return process_commands(bundle).get("web")


def worker_command(bundle: Bundle) -> str | None:
    """Return the command of the process ``worker``, or None without one."""
    return process_commands(bundle).get("worker")


def release_command(bundle: Bundle) -> str:
    """Return the command of the process ``release``, which runs before a version takes over; empty without one."""
    return process_commands(bundle).get("release", "")


def process_commands(bundle: Bundle) -> dict[str, str]:
    """Return the commands by process, in the file's order; the first line of a process counts."""
    file = bundle.file(FILE)
    if file is None:
        return {}
    commands: dict[str, str] = {}
    for line in file.head(MAX_BYTES).decode(errors="replace").splitlines():
        match = LINE.fullmatch(line)
        if match is not None:
            commands.setdefault(match["process"], match["command"])
    return commands
