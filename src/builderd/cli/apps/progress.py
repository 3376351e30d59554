"""Progress of a deployment on standard error: each stage with its seconds, and what the one that runs writes."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from builderd.cli.apps.lifecycle import show_stage
from builderd.cli.group import printable
from builderd.client.errors import BuilderdError

if TYPE_CHECKING:
    from builderd.cli.apps.session import Session
    from builderd.client.models import Stage

#: Seconds between two looks at the log of a build; on a terminal its last line is replaced, elsewhere one is added.
TERMINAL_SECONDS, PLAIN_SECONDS = 1.0, 30.0


class Progress:
    """Reports stages as they end, and meanwhile the seconds of the one that runs with the build's last line."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_terminal = sys.stderr.isatty()
        self._since = time.monotonic()
        self._over = threading.Event()
        self._writes = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_built = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._clear()

    def begin(self, uuid: str) -> None:
        """Look at the log of this builder from now on."""
        if self._thread is None and not self._session.as_json:
            self._thread = threading.Thread(target=self._look, args=(uuid,), daemon=True)
            self._thread.start()

    def stage(self, stage: Stage) -> None:
        """Report a stage that has ended."""
        with self._writes:
            self._since = time.monotonic()
            self._is_built = self._is_built or stage.stage not in ("review", "install")
            self._clear()
            show_stage(self._session, stage)

    def _look(self, uuid: str) -> None:
        earlier = self._last_line(uuid)  # of the version before
        while not self._over.wait(TERMINAL_SECONDS if self._is_terminal else PLAIN_SECONDS):
            found = self._last_line(uuid)
            text = printable(found).strip() if found != earlier and not self._is_built else ""
            with self._writes:
                self._clear()
                line = f"  {'…':<8} {time.monotonic() - self._since:.0f} s  {text}"
                width = shutil.get_terminal_size().columns - 1 if self._is_terminal else None
                click.echo(line[:width], nl=not self._is_terminal, err=True)

    def _last_line(self, uuid: str) -> str:
        with suppress(BuilderdError), self._session.client.builders.get(uuid).logs(tail=1, stream="build") as lines:
            return "".join(line.text for line in lines)
        return ""

    def _clear(self) -> None:
        if self._is_terminal and self._thread is not None:
            click.echo("\r\x1b[K", nl=False, err=True)
