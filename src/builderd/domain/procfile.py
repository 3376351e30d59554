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
    file = bundle.file(FILE)
    if file is None:
        return None
    for line in file.head(MAX_BYTES).decode(errors="replace").splitlines():
        match = LINE.fullmatch(line)
        if match is not None and match["process"] == "web":
            return match["command"]
    return None
