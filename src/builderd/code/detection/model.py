"""Results of detection: an app with its commands, or a refusal that says what to send instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Characters of a name from the code that a message repeats.
MAX_SHOWN = 80

#: Names of ``JobType``.
Kind = Literal["always_on", "worker", "one_time", "static"]


@dataclass(frozen=True, slots=True)
class Detected:
    """An app as it was found in the code: the settings of its version, and why.

    ``framework`` is its name for people, ``reason`` a clause for them: "main.py makes an app of FastAPI". ``port`` is
    where it listens if it does not follow ``PORT``, None: it does, or this is not known. ``output`` is the folder of a
    static site that is served (".": all), ``single_page`` True where every path is answered by its page.
    ``processes`` are the further ones of a Procfile, without ``release``. ``root`` is the folder of the code in which
    it runs ("": all). ``is_private``: its preview must not be open to everybody, such as a notebook server's.
    ``notes`` are sentences about what lies in the folder and is not used. ``added`` are Python packages that its
    command needs and that no list names. ``protocol`` is that of ``Protocol``.
    """

    framework: str
    entrypoint: str
    reason: str
    job_type: Kind = "always_on"
    port: int | None = None
    build: str = ""
    output: str = ""
    single_page: bool = False
    release: str = ""
    processes: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    is_private: bool = False
    notes: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    protocol: str = "http"

    @property
    def commands(self) -> Mapping[str, str]:
        """Return its commands by process: that of ``entrypoint`` under "", and the lines of a Procfile."""
        return {"": self.entrypoint, **self.processes}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason that nothing starts: one sentence with what to send instead. ``roots``: folders that have an app each."""

    reason: str
    roots: Sequence[str] = ()


def shown(text: str) -> str:
    """Return a text from the code as a message repeats it: printable, on one line, cut to ``MAX_SHOWN``."""
    cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return "".join(one if one.isprintable() else "�" for one in cut)
