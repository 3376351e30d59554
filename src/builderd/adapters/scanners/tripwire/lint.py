"""ruff's security rules (``S``), as warnings. The user's configuration and noqa comments are ignored."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: ``S101`` (assert) and ``S311`` (random) say nothing of an app, and ``S104`` (all interfaces) is what it is to do.
ARGUMENTS = (
    *("check", "--isolated", "--ignore-noqa", "--no-respect-gitignore", "--no-cache", "--quiet", "--exit-zero"),
    *("--select", "S", "--ignore", "S101,S104,S311", "--output-format", "json", "--target-version", "py313"),
)
#: Rules whose message quotes what may be a password.
PASSWORDS = frozenset({"S105", "S106", "S107"})
QUOTED = re.compile(r"[\"'`][^\"'`]*[\"'`]")


class Warned(NamedTuple):
    """``quotes``: the line itself may hold a password."""

    rule: str
    path: str
    line: int
    message: str
    quotes: bool


def warnings_of(ruff: Path, folder: Path, names: Mapping[str, str], seconds: float) -> Sequence[Warned]:
    """Run ruff on the folder; ``names`` maps file names to paths of the bundle.

    Raises ``OSError``, ``subprocess.SubprocessError`` or ``ValueError`` if ruff fails.
    """
    done = subprocess.run(
        [str(ruff), *ARGUMENTS, str(folder)],
        capture_output=True,
        env={"RAYON_NUM_THREADS": "2"},
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=seconds,
    )
    found = []
    for entry in json.loads(done.stdout):
        code, name = entry["code"], Path(entry["filename"]).name
        if not code or not code.startswith("S") or not code[1:].isdigit():
            continue  # a syntax error, which is reported already
        quotes = code in PASSWORDS
        message = QUOTED.sub("…", entry["message"]) if quotes else entry["message"]
        found.append(Warned(f"RUF-{code}", names[name], entry["location"]["row"], message, quotes))
    return found
