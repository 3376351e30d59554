"""A migration that has landed never changes: databases went through it as it was. Comments count, for simplicity."""

from __future__ import annotations

import hashlib
from pathlib import Path

from builderd.store import migrations
from builderd.store.migrations import revisions

VERSIONS = Path(migrations.__file__).parent / "versions"
#: One line a revision: ``sha256  file``, as sha256sum(1) writes them.
LANDED = Path(__file__).with_name("landed_migrations.sha256")
HELP = f"A landed migration is not changed: write a new one. A new one is added to {LANDED.name}: sha256sum *.py."


def test_landed_migrations_are_unchanged() -> None:
    landed = {name: digest for digest, name in (line.split() for line in LANDED.read_text().splitlines())}
    present = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VERSIONS.glob("*.py")}
    assert present == landed, HELP


def test_each_revision_is_one_numbered_file() -> None:
    assert [path.name.partition("_")[0] for path in sorted(VERSIONS.glob("*.py"))] == list(revisions())
