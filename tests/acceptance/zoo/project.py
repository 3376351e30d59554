"""Projects of the zoo: a folder's files and what a visitor must see, in one text file each (the format txtar of Go)."""

from __future__ import annotations

import base64
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).with_name("projects")
FILE = re.compile(r"^-- (.+?)( base64)? --\n", re.MULTILINE)


@dataclass(frozen=True)
class Project:
    """A project as its generator or a person made it. ``made`` tells how; no field reaches builderd."""

    name: str
    files: Mapping[str, bytes]
    made: str
    #: The text that a browser shows, by path.
    sees: Mapping[str, str] = field(default_factory=dict)
    #: A regular expression for ``STATUS BODY``, by path; the status is 200 where none is given.
    has: Mapping[str, str] = field(default_factory=dict)
    #: Paths whose file, or any with ``SECRET`` in it, must not be served.
    hidden: tuple[str, ...] = ()
    #: A text of the log, by process; ``""`` is the app's only one.
    logs: Mapping[str, str] = field(default_factory=dict)
    #: A regular expression for what ``deploy`` says on standard error, although it succeeds.
    says: str = ""
    #: The same for a project that must be refused or fail; it is never up.
    refused: str = ""
    kind: str = "always_on"
    #: Seconds for the deployment, against hanging only.
    timeout: int = 600

    def write(self, parent: Path) -> Path:
        """Write the files into a folder of the project's name and return it."""
        for path, content in self.files.items():
            file = parent / self.name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return parent / self.name


def read_project(name: str) -> Project:
    """Return the project that ``projects/NAME.txtar`` describes."""
    head, *parts = FILE.split((FOLDER / f"{name}.txtar").read_text())
    files = {}
    for path, encoded, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        files[path] = base64.b64decode(text) if encoded else text.encode()
    return Project(name, files, **tomllib.loads(head))


NAMES = sorted(path.stem for path in FOLDER.glob("*.txtar"))

if __name__ == "__main__":  # python -m tests.acceptance.zoo.project FOLDER [NAME…]
    for chosen in sys.argv[2:] or NAMES:
        read_project(chosen).write(Path(sys.argv[1]))
