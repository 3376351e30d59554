"""Results of detection: an app with its commands, or a refusal that says what to send instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: Characters of a name from the code that a message repeats.
MAX_SHOWN = 80

#: Names of ``JobType``.
Kind = Literal["always_on", "worker", "one_time", "static"]


@dataclass(frozen=True, slots=True)
class Detected:
    """An app as it was found in the code: the settings of its version, and why."""

    #: As people name it: "FastAPI", "Procfile".
    framework: str
    entrypoint: str
    #: One clause for people: "main.py makes a FastAPI app".
    reason: str
    job_type: Kind = "always_on"
    #: Port on which it listens where it does not follow ``PORT``; None: it follows it, or this is not known.
    port: int | None = None
    build: str = ""
    #: Folder that is served, of a static site: relative to the code's folder, "." for all of it.
    output: str = ""
    #: True where every path is answered by the page, of a static site.
    single_page: bool = False
    release: str = ""
    #: Further processes of a Procfile by name: without the one that ``entrypoint`` is, and without ``release``.
    processes: Mapping[str, str] = field(default_factory=dict)
    #: Folder of the code in which it runs; "": all of it.
    root: str = ""
    #: True where its preview must not be open to everybody, such as that of a notebook server.
    is_private: bool = False
    #: Sentences about what lies in the folder and is not used, and why.
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> Mapping[str, Any]:
        """Return what the API tells of it."""
        return {"framework": self.framework, "reason": self.reason, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason that nothing starts: one sentence with what to send instead. ``roots``: folders that have an app each."""

    reason: str
    roots: Sequence[str] = ()


def shown(text: str) -> str:
    """Return a text from the code as a message repeats it: printable, on one line, cut to ``MAX_SHOWN``."""
    cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return "".join(one if one.isprintable() else "�" for one in cut)
