"""The corpus of ``incident_shapes.toml``: ``REPORTS``, ``SHAPES``, and what the review lets through in ``MISSED``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

from tests.gate import Files


class Shape(NamedTuple):
    """A row: the word of its report, its class and its files."""

    report: str
    kind: str
    files: Files
    entrypoint: str


_CORPUS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
_ENTRYPOINTS = {"app.py": "python3 app.py", "app.js": "node app.js"}
#: Public incident reports by the word that is searched for.
REPORTS: dict[str, str] = _CORPUS["reports"]
SHAPES = {
    f"{row['report']} {number}: {row['kind']}": Shape(**row, entrypoint=_ENTRYPOINTS[next(iter(row["files"]))])
    for number, row in enumerate(_CORPUS["shapes"], 1)
}
#: What is let through, by its report and class, with the reason.
_REASONS = {
    ("postmark-mcp", "wallet address"): "a copy of a mail to an address is what mail is for",
    ("semantic-types", "wallet address"): (
        "a pair of keys in an object of a library, which sound apps sign with and send on"
    ),
    ("psslib", "destruction"): "panels of machines shut them down on request",
    ("js-bomb", "destruction"): "scripts that clean up delete folders of node_modules",
    ("ai-agents", "destruction"): "what an agent is told in words is not read",
    ("ai-agents", "secrets sent"): "what an agent is told in words is not read",
    ("clipper-451", "persistence"): "the shortcut is one of a list that is not known before it runs",
}
MISSED = {name: _REASONS[row.report, row.kind] for name, row in SHAPES.items() if (row.report, row.kind) in _REASONS}
#: One of its shapes that reads the secrets of a cloud by its own calls, as apps do with their own secrets.
MISSED |= {
    name: "the values of a cloud's own secrets, which apps fetch too"
    for name, row in SHAPES.items()
    if "ListSecretsCommand" in str(row.files)
}
